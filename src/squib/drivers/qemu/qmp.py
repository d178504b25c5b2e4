"""QEMU's monitor: the part of QMP that squib needs. Every wait has a timeout.

Messages are JSON objects, one per line: a greeting, responses with the ``id`` of their command, and events. The
reference is QEMU's ``docs/interop/qmp-spec``.

The library `qemu.qmp` (0.0.6) is not used. If QEMU ends right after the handshake, its ``connect`` fails an assertion
and leaks a socket and tasks. It keeps a history of all events, and the guest decides how many there are. Its
``disconnect`` waits for ever for a QEMU that does not read.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from squib.errors import ToolFailed
from squib.host import sockets
from squib.undo import Undo

TIMEOUT_S = 10.0
_GREETING = 0  # the id under which the greeting is waited for; the first command has id 1
_MAX_LINE_BYTES = 16 << 20
_CLOSED = {"error": {"desc": "QEMU closed its monitor"}}


class QMP(asyncio.Protocol):
    """A connection to one QEMU's monitor.

    If QEMU hangs, calls fail after their timeout.
    """

    def __init__(self, connection: socket.socket) -> None:
        """See `connect`."""
        self.shutdown_reason: str | None = None
        """``reason`` of the last SHUTDOWN event, such as ``guest-shutdown``, ``guest-reset`` or ``host-signal``."""
        self._connection = connection
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._ids = itertools.count(_GREETING + 1)
        self._closed = asyncio.Event()

    @classmethod
    async def connect(cls, path: Path, *, timeout_s: float = TIMEOUT_S) -> QMP:
        """Connect to the monitor at ``path``.

        Raises `ToolFailed` if QEMU does not respond in time, or ends.
        """
        try:
            connection = sockets.connect(path)
        except OSError as error:
            raise ToolFailed(f"QEMU's monitor {path} cannot be reached: {error.strerror}") from error
        connection.setblocking(False)
        qmp = cls(connection)
        with Undo(qmp.close):
            await asyncio.get_running_loop().create_unix_connection(lambda: qmp, sock=connection)
            await qmp._answer(_GREETING, "the connection", timeout_s)
            await qmp.execute("qmp_capabilities", timeout_s=timeout_s)
        return qmp

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        fd: int | None = None,
    ) -> object:
        """Run a command and return its result.

        QEMU gets a duplicate of the file descriptor ``fd``.

        Raises `ToolFailed` if the command fails, or QEMU ends or does not respond in time.
        """
        if self._transport is None or self._closed.is_set():
            raise ToolFailed(f"QEMU failed at {command}: {_CLOSED['error']['desc']}")
        number = next(self._ids)
        message = {"execute": command, "arguments": arguments or {}, "id": number}
        line = json.dumps(message).encode() + b"\n"
        if fd is None:
            self._transport.write(line)
        else:
            self._send(line, fd, command)
        answer = await self._answer(number, command, timeout_s)
        return answer.get("return")

    def _send(self, line: bytes, fd: int, command: str) -> None:
        """Send a line with a file descriptor, which asyncio's transport cannot.

        Earlier commands have left it, because each was answered.
        """
        try:
            sent = socket.send_fds(self._connection, [line], [fd])
        except OSError as error:
            raise ToolFailed(f"QEMU failed at {command}: its monitor takes nothing: {error.strerror}") from error
        assert sent == len(line)  # a few bytes in an empty socket

    async def drained(self, *, timeout_s: float = 1.0) -> None:
        """Wait, at most ``timeout_s``, until QEMU closes the connection.

        All its events have then arrived.
        """
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closed.wait(), timeout_s)

    def close(self) -> None:
        """Close the connection. QEMU keeps running. Idempotent."""
        if self._transport is not None:
            self._transport.abort()
        else:
            self._connection.close()

    async def _answer(self, number: int, what: str, timeout_s: float) -> dict[str, Any]:
        waiting = self._waiting.setdefault(number, asyncio.get_running_loop().create_future())
        try:
            async with asyncio.timeout(timeout_s):
                answer = await waiting
        except TimeoutError:
            raise ToolFailed(f"QEMU did not respond to {what} within {timeout_s:g} s") from None
        finally:
            del self._waiting[number]
        if "error" in answer:
            raise ToolFailed(f"QEMU failed at {what}: {answer['error'].get('desc')}")
        return answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._waiting[_GREETING] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        *lines, rest = data.split(b"\n")
        for line in lines:
            try:
                self._take(json.loads(self._received + line))
            except ValueError:
                self.close()
                return
            self._received.clear()
        self._received += rest
        if len(self._received) > _MAX_LINE_BYTES:
            self.close()

    def _take(self, message: dict[str, Any]) -> None:
        if message.get("event") == "SHUTDOWN":
            self.shutdown_reason = str(message.get("data", {}).get("reason", ""))
        number = _GREETING if "QMP" in message else message.get("id")
        waiting = self._waiting.get(number) if isinstance(number, int) else None
        if waiting is not None and not waiting.done():
            waiting.set_result(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed.set()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_result(_CLOSED)
