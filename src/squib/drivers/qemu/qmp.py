"""QEMU's monitor (QMP): the `qemu.qmp` library with bounded waiting, squib's errors, and a memory of why the machine
stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Mapping
from pathlib import Path

from qemu.qmp import Message, QMPClient, QMPError, Runstate

from squib.errors import ToolFailed
from squib.host import sockets

EXECUTE_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 1.0


class QMP:
    """A connection to one QEMU. A QEMU that hangs costs the caller a timeout, never more."""

    def __init__(self, connection: socket.socket) -> None:
        """Take over ``connection``; `connect` says hello."""
        self.shutdown_reason: str | None = None
        """``reason`` of the last SHUTDOWN event: ``guest-shutdown``, ``guest-reset``, ``host-signal``, ``host-qmp-
        quit``, …
        """
        self._socket = connection
        self._client = QMPClient()
        # The default listener queues every event and keeps them in a history, and the guest decides how many there are.
        # A filter that takes none leaves both empty.
        self._client.events.event_filter = self._note

    @classmethod
    async def connect(cls, path: Path, *, timeout_s: float = EXECUTE_TIMEOUT_S) -> QMP:
        """Connect to the monitor at ``path``. Raises `ToolFailed` if QEMU does not answer in time, or ends."""
        try:
            connection = sockets.connect(path)
        except OSError as error:
            raise ToolFailed(f"QEMU's monitor {path} cannot be reached: {error.strerror}") from error
        connection.setblocking(False)
        qmp = cls(connection)
        try:
            async with asyncio.timeout(timeout_s):
                await qmp._client.connect(connection)
        except TimeoutError:
            raise ToolFailed(f"QEMU's monitor did not answer within {timeout_s:g} s") from None
        except QMPError as error:
            raise ToolFailed(f"QEMU's monitor closed the connection: {error}") from error
        finally:
            if qmp._client.greeting is None:
                connection.close()
        return qmp

    def _note(self, event: Message) -> bool:
        data = event.get("data")
        if event["event"] == "SHUTDOWN" and isinstance(data, dict):
            self.shutdown_reason = str(data.get("reason", ""))
        return False

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, timeout_s: float = EXECUTE_TIMEOUT_S
    ) -> object:
        """Run a command and return its answer.

        Raises `ToolFailed` if QEMU refuses, ends, or does not answer in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self._client.execute(command, arguments)
        except TimeoutError:
            raise ToolFailed(f"QEMU did not answer {command} within {timeout_s:g} s") from None
        except QMPError as error:
            raise ToolFailed(f"QEMU could not carry out {command}: {error}") from error

    async def pass_fd(self, name: str, fd: int) -> None:
        """Give QEMU a copy of ``fd`` that later commands know as ``fd:<name>``."""
        try:
            self._client.send_fd_scm(fd)
        except (QMPError, OSError) as error:
            raise ToolFailed(f"QEMU could not be given a descriptor: {error}") from error
        await self.execute("getfd", {"fdname": name})

    async def drained(self, *, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Return when QEMU has closed the connection, so that all its events are known; or after ``timeout_s``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._client.runstate is Runstate.RUNNING:
                    await self._client.runstate_changed()

    async def close(self) -> None:
        """Close the connection. QEMU goes on. Idempotent."""
        # Shut down first: the library waits for its output to be written, which a hung QEMU would never read.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(QMPError, OSError, EOFError, TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._client.disconnect()
