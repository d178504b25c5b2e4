"""The engine: the owner of a state directory.

It holds the state and the stores that the verbs use.

`squib.core.startup` creates it. VMMs keep running after it ends; the next engine adopts them (`squib.core.reconcile`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from squib.core.lifecycle.transitions import WITH_VMM
from squib.core.lifecycle.verbs import VerbQueues
from squib.core.snapshots.making import Making
from squib.drivers.base import Machine
from squib.drivers.registry import Drivers
from squib.errors import AgentLost
from squib.guest.agent import AGENT_BINARY, AgentClient
from squib.host import cgroup
from squib.host.processes import ProcessIdentity
from squib.images.overlay import OverlayStore
from squib.images.store import ImageStore
from squib.kernels.catalog import KernelStore
from squib.kernels.initramfs import InitramfsStore
from squib.models import EngineInfo
from squib.paths import Home, process_lock
from squib.store.database import Store, now
from squib.store.records import Owner, OwnerKind, VMRecord
from squib.version import VERSION

log = logging.getLogger("squib.engine")

_FLUSH_S = 1.0
VMM = "vmm"
"""The role of the VMM among a VM's processes."""


@dataclass
class RunningVM:
    """A running VM: its VMM, its agent client, and the watcher for its end."""

    machine: Machine
    agent: AgentClient
    watcher: asyncio.Task[None] | None = None
    known_env: dict[str, str] | None = field(default=None, repr=False)
    """The VM-wide environment that the guest has; ``None`` if it is not known."""

    async def close(self) -> None:
        """Close the engine's connections. The VMM keeps running."""
        if self.watcher and self.watcher is not asyncio.current_task():
            self.watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.watcher
        await self.agent.close()
        await self.machine.detach()


class Engine:
    """The stores, running VMs and verb queues of one state directory."""

    def __init__(self, home: Home, drivers: Drivers, agent_binary: Path = AGENT_BINARY) -> None:
        self.home = home
        self.drivers = drivers
        self.agent_binary = agent_binary
        self.store = Store(home.database)
        self._database_inode = home.database.stat().st_ino
        self.images = ImageStore(home)
        self.overlays = OverlayStore(home)
        self.kernels = KernelStore(home)
        self.initramfs = InitramfsStore(home)
        self.choosing = 0
        """How many owners are choosing files of the cache now (`squib.core.references`)."""
        self.making_template: Making | None = None
        """The template that is being made, or was made last (`squib.core.snapshots.templates`)."""
        self.cgroups = cgroup.find_layout()
        self.running: dict[str, RunningVM] = {}
        self.verbs = VerbQueues()
        self.holders: Counter[str] = Counter()
        """How many clients hold each bound VM."""
        self.boot_slots = asyncio.Semaphore(max(2, os.cpu_count() or 1))
        """Limits how many VMs boot at once. A boot keeps a CPU busy, so more boots than CPUs only slow each other."""
        self.on_needed: Callable[[bool], None] = lambda needed: None
        """Called with ``True`` before a VMM is started, because VMs need an engine from then on."""
        self.started_at: datetime = now()
        self._deleted: dict[str, asyncio.Event] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._last_activity = time.monotonic()
        self._requests = 0
        self.background(self._write_facts(), name="write facts")

    def vm_of(self, record: VMRecord) -> RunningVM:
        """Return the engine's side of a VM that runs or is paused.

        Raises `AgentLost` if it has just ended.
        """
        vm = self.running.get(record.vm_id)
        if vm is None:
            raise AgentLost(f"VM {record.name} has just ended", hint=f"squib inspect {record.name} shows why")
        return vm

    def deleted_event(self, vm_id: str) -> asyncio.Event:
        """Return an event that is set when this VM is deleted."""
        return self._deleted.setdefault(vm_id, asyncio.Event())

    def forget(self, vm_id: str) -> None:
        """Discard the state of a deleted VM and set its `deleted_event`."""
        self.holders.pop(vm_id, None)
        if event := self._deleted.pop(vm_id, None):
            event.set()

    def cgroup_name(self, name: str) -> str:
        """Return the full name of a cgroup of this engine.

        A VM's cgroup has the VM's ID as its ``name``.
        """
        return f"{cgroup_parent(self.home)}/{name}"

    def directory(self, owner: Owner) -> Path:
        """Return the directory of an owner."""
        return self.home.owner(owner.kind, owner.id)

    def identity(self, owner: Owner, role: str) -> ProcessIdentity:
        """Return the lock and cgroups of an owner's process with this role."""
        name = owner.id if owner.kind is OwnerKind.VM else f"{owner.kind}:{owner.id}/{role}"
        groups = cgroup.directories(self.cgroups, self.cgroup_name(name))
        return ProcessIdentity(process_lock(self.directory(owner), role), groups)

    def driver_folder(self, record: VMRecord) -> Path:
        """Return the directory of a VM's driver."""
        return self.home.vm(record.vm_id).driver(record.driver)

    def vmm_identity(self, vm_id: str) -> ProcessIdentity:
        """Return the identity of a VM's VMM."""
        return self.identity(Owner.vm(vm_id), VMM)

    def background(self, work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        """Run ``work`` in the background.

        It is cancelled when the engine ends.
        """
        task = asyncio.create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def _write_facts(self) -> None:
        """Write the facts that a full disk held back, every few seconds."""
        while True:
            await asyncio.sleep(_FLUSH_S)
            self.store.flush()

    @contextlib.contextmanager
    def activity(self) -> Iterator[None]:
        """Keep the engine from being idle until the block ends."""
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1
            self._last_activity = time.monotonic()

    @property
    def idle_s(self) -> float:
        """Seconds without a request and without VMs that need an engine."""
        if self._requests or self.needed:
            return 0.0
        return time.monotonic() - self._last_activity

    @property
    def needed(self) -> bool:
        """Whether a VM needs an engine: if it is bound or may have a VMM.

        The engine deletes a bound VM when its client is gone.
        """
        return any(record.bound or record.state in WITH_VMM for record in self.store.list_vms())

    @property
    def home_replaced(self) -> bool:
        """Whether the state directory was removed or replaced."""
        try:
            return self.home.database.stat().st_ino != self._database_inode
        except (FileNotFoundError, NotADirectoryError):
            return True

    async def close(self) -> None:
        """Cancel all work and close the connections to VMs.

        Their VMMs keep running.
        """
        await self.verbs.close()
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        for vm in list(self.running.values()):
            await vm.close()
        self.store.close()

    def info(self) -> EngineInfo:
        """Describe this engine."""
        return EngineInfo(
            version=VERSION,
            pid=os.getpid(),
            home=os.fsencode(self.home.root).decode(errors="backslashreplace"),
            driver=self.drivers.default.name,
            accelerator=self.drivers.default.accelerator,
            started_at=self.started_at,
            vm_count=len(self.store.all_vms()),
            running_count=len(self.running),
        )


def cgroup_parent(home: Home) -> str:
    """Return the parent cgroup of all VMs of a state directory.

    Other state directories have other parents.
    """
    return f"squib/{hashlib.sha256(os.fsencode(home.root)).hexdigest()[:8]}"
