"""A running Firecracker: connect to its agent, wait for its end, pause it, kill it, or detach from it."""

from __future__ import annotations

import asyncio
import os
import re
import socket

from squib.drivers.base import ExitReason
from squib.drivers.firecracker.api import ApiClient
from squib.drivers.firecracker.exit import Evidence, exit_reason
from squib.drivers.firecracker.requests import DESCRIBE, PAUSE, RESUME
from squib.drivers.firecracker.version import CANNOT_RESUME, Version, parse_version, show_version
from squib.errors import AgentLost, ToolFailed, Unsupported
from squib.host import logs, sockets
from squib.host.logs import LogPump
from squib.host.processes import Process
from squib.paths import AGENT_SOCKET, API_SOCKET, FirecrackerPaths
from squib.undo import Undo

_EVIDENCE_BYTES = 16 * 1024
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


class FirecrackerMachine:
    """`squib.drivers.base.Machine` for Firecracker."""

    def __init__(
        self, process: Process, paths: FirecrackerPaths, endpoint: Endpoint, api: ApiClient, pumps: list[LogPump]
    ) -> None:
        """Take over all these. The first of ``pumps`` copies the guest's console."""
        self.pid = process.pid
        self._process = process
        self._paths = paths
        self._endpoint = endpoint
        self._api = api
        self._pumps = pumps
        self._killed = False
        self._halted: asyncio.Task[None] | None = None
        self._console_end = b""
        pumps[0].on_data = self._look_for_halt
        self._look_for_halt(logs.tail(paths.console_log, _HALT_BYTES))  # it may have halted while no engine looked
        self._ended = asyncio.create_task(self._watch(), name=f"firecracker-{self.pid}")

    async def connect_agent(self) -> socket.socket:
        """Connect to the agent. While it boots, wait until it listens."""
        while self._process.running:
            try:
                return await self._endpoint.agent()
            except (ConnectionError, BlockingIOError):  # nothing listens yet, or too many connect at once
                await asyncio.sleep(_RETRY_S)
        raise AgentLost("Firecracker has ended")

    async def wait(self) -> ExitReason:
        return await asyncio.shield(self._ended)

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

    async def is_paused(self) -> bool:
        return await describe(self._api, "state") == "Paused"

    async def _version(self) -> Version:
        """Return the version of the running Firecracker, which may be older than the installed one."""
        return parse_version(await describe(self._api, "vmm_version"))

    async def kill(self) -> None:
        self._killed = self._killed or self._process.running
        await self._process.kill()
        await self.wait()

    async def detach(self) -> None:
        self._pumps[0].on_data = None
        if self._halted:
            self._halted.cancel()
        self._ended.cancel()
        await asyncio.wait([self._ended])
        self._disconnect()
        self._process.forget()

    def console_tail(self, max_bytes: int = 1 << 20, *, lines: int | None = None) -> bytes:
        return logs.tail(self._paths.console_log, max_bytes, lines=lines)

    async def _watch(self) -> ExitReason:
        await self._process.wait()
        self._disconnect()
        remove_endpoints(self._paths)
        return exit_reason(
            Evidence(
                killed=self._killed,
                console=logs.tail(self._paths.console_log, _EVIDENCE_BYTES).decode(errors="replace"),
                vmm_log=logs.tail(self._paths.vmm_log, _EVIDENCE_BYTES).decode(errors="replace").strip(),
            )
        )

    def _look_for_halt(self, data: bytes) -> None:
        """End a Firecracker whose guest's kernel has halted.

        Firecracker has no power-off, so a kernel that powers off only halts. squib's agent restarts the guest instead,
        which ends Firecracker, but a guest can halt without the agent (``poweroff -f``).
        """
        self._console_end = (self._console_end + data)[-_HALT_BYTES:]
        if self._halted is None and _HALT.search(self._console_end):
            self._halted = asyncio.create_task(self._process.kill(), name=f"halted {self.pid}")

    def _disconnect(self) -> None:
        for pump in self._pumps:
            pump.close()
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


def remove_endpoints(paths: FirecrackerPaths) -> None:
    for path in paths.endpoints():
        path.unlink(missing_ok=True)
