"""A running Firecracker: connect to its agent, wait for its end, pause it, kill it, or detach from it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
import socket
import stat
import weakref
from pathlib import Path
from typing import NamedTuple

from squib.drivers.base import Complete, ExitReason
from squib.drivers.firecracker.api import ApiClient
from squib.drivers.firecracker.exit import Evidence, exit_reason
from squib.drivers.firecracker.memory import find, low_bytes
from squib.drivers.firecracker.requests import DESCRIBE, NO_MEMORY_FILE, PAUSE, RESUME, SAVE_DEVICES, SAVED_DEVICES
from squib.drivers.firecracker.version import (
    CANNOT_RESUME,
    CANNOT_RESUME_BECAUSE,
    OTHER_VERSION,
    Version,
    parse_version,
    show_version,
)
from squib.drivers.machine import ProcessMachine
from squib.errors import AgentLost, HostError, ToolFailed, Unsupported
from squib.host import sockets
from squib.host.files import disk_errors
from squib.host.logs import LogPump
from squib.host.processes import Process
from squib.paths import AGENT_SOCKET, API_SOCKET, FirecrackerPaths
from squib.undo import Undo

_AGENT_PORT = 1024
_CONNECTED = b"OK "
_MAX_LINE_BYTES = 32
_RETRY_S = 0.005
_ANSWER_S, _LONGEST_ANSWER_S = 0.1, 5.0
"""How long a guest that goes on may take to answer, before and after some tries. It can miss a request."""
_FIRST_NUMBER = 1 << 30
_NUMBER_BYTES = 4
_MAX_SKIPPED = 64
_NO_PORT = 1
"""A port on which no guest listens."""
_HALT = re.compile(rb"\[ *\d+\.\d+\] reboot: (System halted|Power down)\r?\n")
_HALT_BYTES = 256
_SAVE_TIMEOUT_S = 30.0
_MAX_DEVICES_BYTES = 2 << 20  # it needs 30 KiB per vCPU
READABLE = 0o644
"""The mode of saved states: the users of other VMs' VMMs read them. Only root gets into their directories."""


class Endpoint:
    """The directory with Firecracker's sockets: its chroot.

    It is held open as a descriptor, because its path leads through the process and would lead elsewhere when the
    process has ended.
    """

    def __init__(self, folder: int) -> None:
        """Take over the descriptor ``folder``."""
        self._folder = folder
        self._agents: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self.number = 0
        """The number that Firecracker has given to the last connection to the agent; 0 if unknown."""

    def api(self) -> socket.socket:
        """Connect to the API. Raises `OSError`."""
        return sockets.connect_in(self._folder, API_SOCKET)

    async def agent(self) -> socket.socket:
        """Connect to the agent's vsock port.

        Firecracker closes the connection if nothing listens there yet. Raises `OSError`.
        """
        connection = sockets.connect_in(self._folder, AGENT_SOCKET)
        self._agents.add(connection)
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
            number = line.removeprefix(_CONNECTED).strip()
            self.number = int(number) - _FIRST_NUMBER + 1 if number.isdigit() else 0
        return connection

    def skip_numbers(self, number: int) -> None:
        """Let Firecracker use up all numbers of connections to ``number``.

        If there were many connections, the first numbers are free again. Raises `ToolFailed`.
        """
        self.number = number
        try:
            for _ in range(number if number <= _MAX_SKIPPED else 0):
                with sockets.connect_in(self._folder, AGENT_SOCKET) as connection:
                    connection.send(b"CONNECT %d\n" % _NO_PORT)
        except OSError as error:
            raise ToolFailed(f"Firecracker does not accept connections to its guest: {error.strerror}") from error

    def hang_up(self) -> None:
        """End all connections to the agent."""
        for connection in list(self._agents):
            with contextlib.suppress(OSError):  # it is closed
                connection.shutdown(socket.SHUT_RDWR)

    def take(self, name: str, max_bytes: int) -> bytes:
        """Return the content of a file that Firecracker has written, and remove it.

        It is Firecracker's directory, so it may be any kind of file. Raises `ToolFailed`, `OSError`.
        """
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._folder)
        with os.fdopen(fd, "rb") as file:
            content = file.read(max_bytes + 1) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
        if not 0 < len(content) <= max_bytes:
            raise ToolFailed(f"Firecracker did not write a file of at most {max_bytes >> 20} MiB as {name}")
        os.unlink(name, dir_fd=self._folder)
        return content

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
        self._is_saved = False
        """Whether the guest stands still since it was saved, or while it is."""
        self._has_booted = False
        """Whether the guest is known to have booted, so that its kernel answers at once."""
        super().__init__(process, paths)
        pumps.console.on_data = self._look_for_halt
        self._look_for_halt(self.console_tail(_HALT_BYTES))  # it may have halted while no engine looked

    async def connect_agent(self) -> socket.socket:
        """Connect to the agent. While it boots, wait until it listens; while it is saved, until it goes on."""
        answer_s = _ANSWER_S if self._has_booted else None
        while self._process.running:
            try:
                if not self._is_saved:
                    async with asyncio.timeout(answer_s):
                        return await self._endpoint.agent()
            except TimeoutError:
                answer_s = answer_s and min(2 * answer_s, _LONGEST_ANSWER_S)
            except (ConnectionError, BlockingIOError):  # nothing listens yet, or too many connect at once
                pass
            await asyncio.sleep(_RETRY_S)
        raise AgentLost("Firecracker has ended")

    async def pause(self) -> None:
        await self._check_resumable("pause")
        await self._api.request(PAUSE)

    async def resume(self) -> None:
        await self._api.request(RESUME)
        self._is_saved, self._has_booted = False, True

    async def save(self, memory: Path, devices: Path, *, size_mib: int) -> Complete:
        # What the host sends to the guest's vsock would change its memory after the devices were saved. The guest ends
        # all connections when it goes on, so they are ended now. Firecracker has noticed when it answers again.
        self._is_saved = True
        self._endpoint.hang_up()
        version = await self._check_resumable("save")
        await self._save_devices(devices)
        complete = await self._save_memory(memory, size_mib, functools.partial(find, low=low_bytes(version)))
        memory.chmod(READABLE)
        return complete

    async def _save_devices(self, path: Path) -> None:
        try:
            await self._api.request(SAVE_DEVICES, timeout_s=_SAVE_TIMEOUT_S)
        except ToolFailed as error:
            if NO_MEMORY_FILE not in error.message:
                raise
        try:
            content = self._endpoint.take(SAVED_DEVICES, _MAX_DEVICES_BYTES)
        except OSError as error:
            raise ToolFailed(f"the state of Firecracker's devices cannot be read: {error.strerror}") from error
        number = min(max(0, self._endpoint.number), _MAX_SKIPPED + 1)
        with disk_errors(path.parent):
            path.write_bytes(content + number.to_bytes(_NUMBER_BYTES))

    async def _check_resumable(self, verb: str) -> Version:
        """Return Firecracker's version. Raises `Unsupported` if this one does not run on after a pause."""
        version = await self._version()
        if version in CANNOT_RESUME:
            raise Unsupported(
                f"Firecracker {show_version(version)} cannot {verb} a VM: {CANNOT_RESUME_BECAUSE}",
                hint=f"{OTHER_VERSION}, then stop the VM and start it",
            )
        return version

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


def unpack_devices(saved: Path, devices: Path) -> int:
    """Write the saved state of devices for Firecracker, and return the number of the last connection before.

    Raises `HostError`, `DiskFull`, `OSError`.
    """
    try:
        content = saved.read_bytes()
    except OSError as error:
        raise HostError(f"the saved state {saved} cannot be read: {error.strerror}") from error
    devices.unlink(missing_ok=True)
    with disk_errors(devices.parent), devices.open("xb") as file:
        file.write(content[:-_NUMBER_BYTES])
        os.fchmod(file.fileno(), READABLE)
    return min(int.from_bytes(content[-_NUMBER_BYTES:]), _MAX_SKIPPED + 1)


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
