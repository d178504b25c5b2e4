"""The guest's serial console: from QEMU's socket into a log of bounded size."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from squib.host.logs import BoundedLog


class ConsolePump(asyncio.Protocol):
    """Writes what the guest prints to ``log``. Made by `pump`."""

    def __init__(self, log: BoundedLog) -> None:
        self._log = log
        self._closed = asyncio.Event()
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._log.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._log.close()
        self._closed.set()

    async def drained(self, *, timeout_s: float = 1.0) -> None:
        """Return when QEMU has closed the console and all of it is in the log; or after ``timeout_s``."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closed.wait(), timeout_s)

    def close(self) -> None:
        """Stop reading. What the guest prints from now on is lost; it does not wait for a reader. Idempotent."""
        if self._transport is not None:
            self._transport.close()


async def pump(connection: socket.socket, log: BoundedLog) -> ConsolePump:
    """Take over a connection to the console's socket and write to ``log`` until QEMU closes it."""
    connection.setblocking(False)
    loop = asyncio.get_running_loop()
    _, protocol = await loop.create_unix_connection(lambda: ConsolePump(log), sock=connection)
    return protocol
