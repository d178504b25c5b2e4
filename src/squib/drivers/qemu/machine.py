"""A running QEMU: wait for its end, pause it, kill it, or detach from it."""

from __future__ import annotations

import asyncio
import socket

from squib.drivers.base import ExitReason
from squib.drivers.qemu.exit import Evidence, exit_reason
from squib.drivers.qemu.qmp import QMP
from squib.errors import ToolFailed
from squib.host import logs, sockets
from squib.host.logs import LogPump
from squib.host.processes import Process
from squib.paths import QemuPaths

_EVIDENCE_BYTES = 16 * 1024


class QemuMachine:
    """`squib.drivers.base.Machine` for QEMU.

    ``console`` and ``output`` copy the output of the guest and of QEMU. They and ``qmp`` are ``None`` if an adopted
    QEMU could not be connected to.
    """

    def __init__(
        self, process: Process, paths: QemuPaths, qmp: QMP | None, console: LogPump | None, output: LogPump | None
    ) -> None:
        self.pid = process.pid
        self.qmp = qmp
        self._process = process
        self._paths = paths
        self._pumps = [pump for pump in (console, output) if pump]
        self._killed = False
        self._ended = asyncio.create_task(self._watch(), name=f"qemu-{self.pid}")

    async def connect_agent(self) -> socket.socket:
        return sockets.connect(self._paths.agent_socket, blocking=False)

    async def wait(self) -> ExitReason:
        return await asyncio.shield(self._ended)

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

    async def kill(self) -> None:
        self._killed = self._killed or self._process.running
        await self._process.kill()
        await self.wait()

    async def detach(self) -> None:
        self._ended.cancel()
        await asyncio.wait([self._ended])
        self._disconnect()
        self._process.forget()

    def console_tail(self, max_bytes: int = 1 << 20, *, lines: int | None = None) -> bytes:
        return logs.tail(self._paths.console_log, max_bytes, lines=lines)

    async def _watch(self) -> ExitReason:
        await self._process.wait()
        if self.qmp is not None:
            await self.qmp.drained()  # QEMU's last event may still be in the socket
        self._disconnect()
        remove_endpoints(self._paths)
        return exit_reason(self._evidence())

    def _disconnect(self) -> None:
        for pump in self._pumps:
            pump.close()
        if self.qmp is not None:
            self.qmp.close()

    def _evidence(self) -> Evidence:
        return Evidence(
            returncode=self._process.returncode,
            killed=self._killed,
            shutdown=self.qmp.shutdown_reason if self.qmp else None,
            console=logs.tail(self._paths.console_log, _EVIDENCE_BYTES).decode(errors="replace"),
            vmm_log=logs.tail(self._paths.vmm_log, _EVIDENCE_BYTES).decode(errors="replace").strip(),
        )


def remove_endpoints(paths: QemuPaths) -> None:
    for path in paths.endpoints():
        path.unlink(missing_ok=True)
