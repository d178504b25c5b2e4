"""A running QEMU: wait for its end, pause it, kill it, or detach from it."""

from __future__ import annotations

import socket

from squib.drivers.base import ExitReason
from squib.drivers.machine import ProcessMachine
from squib.drivers.qemu.exit import Evidence, exit_reason
from squib.drivers.qemu.qmp import QMP
from squib.errors import ToolFailed
from squib.host import sockets
from squib.host.logs import LogPump
from squib.host.processes import Process
from squib.paths import QemuPaths


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
        self._pumps = [pump for pump in (console, output) if pump]
        super().__init__(process, paths)

    async def connect_agent(self) -> socket.socket:
        return sockets.connect(self._agent_socket, blocking=False)

    async def pause(self) -> None:
        await self._monitor().execute("stop")

    async def resume(self) -> None:
        await self._monitor().execute("cont")

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
