"""What the machines of all VMMs that are processes of this host have in common."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from pathlib import Path

from squib.drivers.base import Complete, ExitReason
from squib.host import logs
from squib.host import memory as guest_memory
from squib.host.files import disk_errors
from squib.host.memory import Find, SharedPages
from squib.host.processes import Process
from squib.paths import DriverPaths

_EVIDENCE_BYTES = 16 * 1024


class ProcessMachine(ABC):
    """The part of `squib.drivers.base.Machine` that needs only a process and its logs."""

    def __init__(self, process: Process, paths: DriverPaths) -> None:
        """Take over ``process`` and watch for its end. What `_watch` uses must be set before."""
        self.pid = process.pid
        self._process = process
        self._paths = paths
        self._killed = False
        self._ended = asyncio.create_task(self._watch(), name=f"{type(self).__name__} {self.pid}")

    async def wait(self) -> ExitReason:
        return await asyncio.shield(self._ended)

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

    async def _save_memory(self, path: Path, size_mib: int, find: Find) -> Complete:
        """Write the memory of the paused guest to a new file, as `squib.drivers.base.Machine.save` does."""

        def save() -> SharedPages:
            with path.open("xb") as file:
                return guest_memory.save(self.pid, size_mib, file.fileno(), find)

        with disk_errors(path.parent):
            shared = await asyncio.to_thread(save)

        async def complete() -> None:
            with disk_errors(path.parent):
                await asyncio.to_thread(shared.add_to, path)

        return complete

    async def _watch(self) -> ExitReason:
        await self._wait_for_end()
        self._disconnect()
        remove_endpoints(self._paths)
        return self._exit_reason()

    async def _wait_for_end(self) -> None:
        """Wait until the VMM has ended, and all that it sent has arrived."""
        await self._process.wait()

    @abstractmethod
    def _disconnect(self) -> None:
        """Close this engine's connections to the VMM. Idempotent."""

    @abstractmethod
    def _exit_reason(self) -> ExitReason:
        """Return why the VMM ended."""

    def _console_text(self) -> str:
        """Return the end of the guest's console, as evidence."""
        return _end_of(self._paths.console_log)

    def _vmm_text(self) -> str:
        """Return the end of the VMM's log, as evidence."""
        return _end_of(self._paths.vmm_log).strip()


def remove_endpoints(paths: DriverPaths) -> None:
    """Remove the sockets and pipes of a VMM that does not run. Idempotent."""
    for path in paths.endpoints():
        path.unlink(missing_ok=True)


def _end_of(log: Path) -> str:
    return logs.tail(log, _EVIDENCE_BYTES).decode(errors="replace")
