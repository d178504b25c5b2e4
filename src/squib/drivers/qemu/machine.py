"""A running QEMU: wait for its end, pause it, kill it, or detach from it."""

from __future__ import annotations

import socket
from pathlib import Path

from squib.drivers.base import Complete, ExitReason
from squib.drivers.machine import ProcessMachine
from squib.drivers.qemu.exit import Evidence, exit_reason
from squib.drivers.qemu.qmp import QMP
from squib.errors import ToolFailed
from squib.host import sockets
from squib.host.files import disk_errors
from squib.host.logs import LogPump
from squib.host.memory import find_memfd
from squib.host.processes import Process
from squib.paths import QemuPaths

_SAVE_TIMEOUT_S = 30.0


class QemuMachine(ProcessMachine):
    """`squib.drivers.base.Machine` for QEMU.

    ``console`` and ``output`` copy the output of the guest and of QEMU. They and ``qmp`` are ``None`` if an adopted
    QEMU could not be connected to.
    """

    def __init__(
        self, process: Process, paths: QemuPaths, qmp: QMP | None, console: LogPump | None, output: LogPump | None
    ) -> None:
        self.qmp = qmp
        self._agent_socket = paths.agent_socket
        self._lent_files: list[int] = []
        self._pumps = [pump for pump in (console, output) if pump]
        super().__init__(process, paths)

    async def connect_agent(self) -> socket.socket:
        return sockets.connect(self._agent_socket, blocking=False)

    async def pause(self) -> None:
        await self._monitor().execute("stop")

    async def resume(self) -> None:
        await self._monitor().execute("cont")
        while self._lent_files:  # QEMU closes them only while the guest runs
            await self._monitor().execute("remove-fd", {"fdset-id": self._lent_files.pop()})

    async def save(self, memory: Path, devices: Path, *, size_mib: int) -> Complete:
        with disk_errors(devices.parent), devices.open("xb") as file:
            await self._save_devices(file.fileno())
        return await self._save_memory(memory, size_mib, find_memfd)

    async def _save_devices(self, fd: int) -> None:
        """Let QEMU write the state of all devices, without the memory.

        The command is named after Xen, but works with every accelerator. QEMU's migration would write the memory too:
        the whole of it if it is mapped privately.
        """
        monitor = self._monitor()
        added = await monitor.execute("add-fd", fd=fd)
        if not (isinstance(added, dict) and isinstance(number := added.get("fdset-id"), int)):
            raise ToolFailed("QEMU did not take the file for the state of its devices")
        self._lent_files.append(number)
        arguments = {"filename": f"/dev/fdset/{number}", "live": False}
        await monitor.execute("xen-save-devices-state", arguments, timeout_s=_SAVE_TIMEOUT_S)

    async def is_paused(self) -> bool:
        status = await self._monitor().execute("query-status")
        return not (isinstance(status, dict) and status.get("running") is True)

    def _monitor(self) -> QMP:
        if self.qmp is None:
            raise ToolFailed("QEMU's monitor did not respond when the engine adopted the VM")
        return self.qmp

    async def _wait_for_end(self) -> None:
        await super()._wait_for_end()
        if self.qmp is not None:
            await self.qmp.drained()  # QEMU's last event may still be in the socket

    def _disconnect(self) -> None:
        for pump in self._pumps:
            pump.close()
        if self.qmp is not None:
            self.qmp.close()

    def _exit_reason(self) -> ExitReason:
        return exit_reason(
            Evidence(
                returncode=self._process.returncode,
                killed=self._killed,
                shutdown=self.qmp.shutdown_reason if self.qmp else None,
                console=self._console_text(),
                vmm_log=self._vmm_text(),
            )
        )
