"""A running Firecracker: connect to its agent, wait for its end, pause it, kill it, or detach from it."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from pathlib import Path
from typing import NamedTuple

from squib.drivers.base import Complete, ExitReason
from squib.drivers.firecracker.api import ApiClient
from squib.drivers.firecracker.exit import Evidence, exit_reason
from squib.drivers.firecracker.requests import DESCRIBE, PAUSE, RESUME
from squib.drivers.firecracker.version import CANNOT_RESUME, Version, parse_version, show_version
from squib.drivers.machine import ProcessMachine
from squib.errors import AgentLost, ToolFailed, Unsupported
from squib.host import sockets
from squib.host.logs import LogPump
from squib.host.processes import Process
from squib.paths import AGENT_SOCKET, API_SOCKET, FirecrackerPaths
from squib.undo import Undo

_AGENT_PORT = 1024
_CONNECTED = b"OK "
_MAX_LINE_BYTES = 32
_RETRY_S = 0.005
_HALT = re.compile(rb"\[ *\d+\.\d+\] reboot: (System halted|Power down)\r?\n")
_HALT_BYTES = 256


class Endpoint:
    """The directory with Firecracker's sockets: its chroot.

    It is held open as a descriptor, because its path leads through the process and would lead elsewhere when the
    process has ended.
    """

    def __init__(self, folder: int) -> None:
        """Take over the descriptor ``folder``."""
        self._folder = folder

    def api(self) -> socket.socket:
        """Connect to the API. Raises `OSError`."""
        return sockets.connect_in(self._folder, API_SOCKET)

    async def agent(self) -> socket.socket:
        """Connect to the agent's vsock port.

        Firecracker closes the connection if nothing listens there yet. Raises `OSError`.
        """
        connection = sockets.connect_in(self._folder, AGENT_SOCKET)
        with Undo(connection.close):
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(connection, b"CONNECT %d\n" % _AGENT_PORT)
            line = b""
            while not line.endswith(b"\n"):  # byte by byte: what follows the line belongs to the agent
                received = await loop.sock_recv(connection, 1)
                line += received
                if not received or len(line) > _MAX_LINE_BYTES:
                    raise ConnectionResetError("Firecracker closed the connection to the agent")
            if not line.startswith(_CONNECTED):
                raise ConnectionRefusedError("Firecracker refused the connection to the agent")
        return connection

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1


class Pumps(NamedTuple):
    """Copy what the guest and Firecracker print into their logs."""

    console: LogPump
    log: LogPump
    metrics: LogPump

    def close(self) -> None:
        """Copy what has arrived, and close all. Idempotent."""
        for pump in self:
            pump.close()


class FirecrackerMachine(ProcessMachine):
    """`squib.drivers.base.Machine` for Firecracker."""

    def __init__(
        self, process: Process, paths: FirecrackerPaths, endpoint: Endpoint, api: ApiClient, pumps: Pumps
    ) -> None:
        """Take over all these."""
        self._endpoint = endpoint
        self._api = api
        self._pumps = pumps
        self._halted: asyncio.Task[None] | None = None
        self._console_end = b""
        super().__init__(process, paths)
        pumps.console.on_data = self._look_for_halt
        self._look_for_halt(self.console_tail(_HALT_BYTES))  # it may have halted while no engine looked

    async def connect_agent(self) -> socket.socket:
        """Connect to the agent. While it boots, wait until it listens."""
        while self._process.running:
            try:
                return await self._endpoint.agent()
            except (ConnectionError, BlockingIOError):  # nothing listens yet, or too many connect at once
                await asyncio.sleep(_RETRY_S)
        raise AgentLost("Firecracker has ended")

    async def pause(self) -> None:
        version = await self._version()
        if version in CANNOT_RESUME:
            raise Unsupported(
                f"Firecracker {show_version(version)} cannot pause a VM: after a resume it cannot reach the guest",
                hint="squib install firecracker --version 1.17.0, then stop the VM and start it",
            )
        await self._api.request(PAUSE)

    async def resume(self) -> None:
        await self._api.request(RESUME)

    async def save(self, memory: Path, devices: Path, *, size_mib: int) -> Complete:
        raise Unsupported("the driver firecracker does not save machines")

    async def is_paused(self) -> bool:
        return await describe(self._api, "state") == "Paused"

    async def _version(self) -> Version:
        """Return the version of the running Firecracker, which may be older than the installed one."""
        return parse_version(await describe(self._api, "vmm_version"))

    async def detach(self) -> None:
        self._pumps.console.on_data = None
        if self._halted:
            self._halted.cancel()
        await super().detach()

    def _exit_reason(self) -> ExitReason:
        return exit_reason(Evidence(self._killed, console=self._console_text(), vmm_log=self._vmm_text()))

    def _look_for_halt(self, data: bytes) -> None:
        """End a Firecracker whose guest's kernel has halted.

        Firecracker has no power-off, so a kernel that powers off only halts. squib's agent restarts the guest instead,
        which ends Firecracker, but a guest can halt without the agent (``poweroff -f``).
        """
        self._console_end = (self._console_end + data)[-_HALT_BYTES:]
        if self._halted is None and _HALT.search(self._console_end):
            self._halted = asyncio.create_task(self._process.kill(), name=f"halted {self.pid}")

    def _disconnect(self) -> None:
        self._pumps.close()
        self._api.close()
        self._endpoint.close()


async def describe(api: ApiClient, name: str, *, timeout_s: float | None = None) -> str:
    """Return a field of Firecracker's description of itself.

    ``name`` is ``vmm_version`` or ``state``, which is ``Not started``, ``Running`` or ``Paused``.

    Raises `ToolFailed`.
    """
    answer = await api.request(DESCRIBE, timeout_s=timeout_s)
    found = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(found, str):
        raise ToolFailed(f"Firecracker did not describe its {name}")
    return found
