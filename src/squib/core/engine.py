"""The engine: the only owner of a state directory. It holds what the verbs work with.

`squib.core.startup` creates it. VMMs outlive it: the next engine adopts them (`squib.core.reconcile`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from squib.core.lifecycle.transitions import WITH_VMM
from squib.drivers.base import Driver, Machine
from squib.errors import AgentUnreachable
from squib.guest.agent import AGENT_BINARY, AgentClient
from squib.host import cgroup
from squib.host.processes import ProcessIdentity
from squib.images.overlay import OverlayStore
from squib.images.store import ImageStore
from squib.kernels.catalog import KernelStore
from squib.kernels.initramfs import InitramfsStore
from squib.models import EngineInfo
from squib.paths import Home
from squib.store.database import Store, VMRecord, now
from squib.version import VERSION

log = logging.getLogger("squib.engine")


@dataclass
class RunningVM:
    """What the engine holds of a VM that runs: its VMM, the session with its agent, and the task that waits for its
    end.
    """

    machine: Machine
    agent: AgentClient
    watcher: asyncio.Task[None] | None = None
    known_env: dict[str, str] | None = field(default=None, repr=False)
    """The VM-wide environment that the guest was told; ``None`` if that is not known."""

    async def close(self) -> None:
        """Let go of it; the VMM goes on."""
        if self.watcher and self.watcher is not asyncio.current_task():
            self.watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.watcher
        await self.agent.close()
        await self.machine.detach()


class Engine:
    """Everything of one state directory."""

    def __init__(self, home: Home, driver: Driver, agent_binary: Path = AGENT_BINARY) -> None:
        self.home = home
        self.driver = driver
        self.agent_binary = agent_binary
        self.store = Store(home.database)
        self._database_inode = home.database.stat().st_ino
        self.images = ImageStore(home)
        self.overlays = OverlayStore(home)
        self.kernels = KernelStore(home)
        self.initramfs = InitramfsStore(home)
        self.cgroups = cgroup.find_layout()
        self.running: dict[str, RunningVM] = {}
        self.starts: dict[str, asyncio.Task[None]] = {}
        self.boot_slots = asyncio.Semaphore(max(2, os.cpu_count() or 1))
        """A boot keeps a processor busy: more at once than there are would only make each of them slower."""
        self.started_at: datetime = now()
        self._locks: dict[str, asyncio.Lock] = {}
        self._gone: dict[str, asyncio.Event] = {}
        self._last_activity = time.monotonic()
        self._requests = 0

    @contextlib.asynccontextmanager
    async def lock(self, vm_id: str) -> AsyncIterator[None]:
        """Only one verb at a time changes a VM."""
        lock = self._locks.setdefault(vm_id, asyncio.Lock())
        async with lock:
            yield

    def vm_of(self, record: VMRecord) -> RunningVM:
        """What is held of a VM that is up. Raises `AgentUnreachable` if it has just ended."""
        vm = self.running.get(record.vm_id)
        if vm is None:
            raise AgentUnreachable(f"VM {record.name} has just ended", hint=f"squib inspect {record.name} shows why")
        return vm

    def gone(self, vm_id: str) -> asyncio.Event:
        """Set when a VM that is there now is no more."""
        return self._gone.setdefault(vm_id, asyncio.Event())

    def forget(self, vm_id: str) -> None:
        """Drop what is kept for a VM that is no more."""
        self._locks.pop(vm_id, None)
        if gone := self._gone.pop(vm_id, None):
            gone.set()

    def cgroup_name(self, vm_id: str) -> str:
        """The cgroup of a VM."""
        return f"{cgroup_parent(self.home)}/{vm_id}"

    def vmm_identity(self, vm_id: str) -> ProcessIdentity:
        """How the VMM of a VM is recognised: by its lock, or by the VM's cgroup."""
        return ProcessIdentity(self.home.vm(vm_id).vmm_lock, cgroup.directories(self.cgroups, self.cgroup_name(vm_id)))

    @contextlib.contextmanager
    def activity(self) -> Iterator[None]:
        """Somebody uses the engine: it is not idle until the block has ended."""
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1
            self._last_activity = time.monotonic()

    @property
    def idle_s(self) -> float:
        """For how long nobody has needed the engine: no request under way, no VM that runs."""
        if self._requests or any(record.state in WITH_VMM for record in self.store.list_vms()):
            return 0.0
        return time.monotonic() - self._last_activity

    @property
    def evicted(self) -> bool:
        """Whether somebody has removed the state directory, or put another in its place."""
        try:
            return self.home.database.stat().st_ino != self._database_inode
        except (FileNotFoundError, NotADirectoryError):
            return True

    async def close(self) -> None:
        """End what is under way and let go of the VMs, which go on."""
        for task in list(self.starts.values()):
            task.cancel()
        await asyncio.gather(*self.starts.values(), return_exceptions=True)
        for vm in list(self.running.values()):
            await vm.close()
        self.store.close()

    def info(self) -> EngineInfo:
        """What this engine is."""
        records = self.store.list_vms()
        return EngineInfo(
            version=VERSION,
            pid=os.getpid(),
            home=os.fsencode(self.home.root).decode(errors="backslashreplace"),
            driver=self.driver.name,
            accelerator=self.driver.accelerator,
            started_at=self.started_at,
            vm_count=len(records),
            running_count=len(self.running),
        )


def cgroup_parent(home: Home) -> str:
    """The cgroup of all VMs of a state directory: apart from those of others on this host."""
    return f"squib/{hashlib.sha256(os.fsencode(home.root)).hexdigest()[:8]}"
