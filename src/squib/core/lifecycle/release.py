"""Release the host resources of an owner: its leases, newest first.

No other module releases them. Each step is idempotent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from squib.core.engine import Engine
from squib.host import cgroup, processes
from squib.host.files import remove_tree
from squib.store.records import Lease, LeaseKind, Owner, OwnerKind

log = logging.getLogger("squib.release")

RUN = frozenset({LeaseKind.PROCESS, LeaseKind.CGROUP})
"""The kinds of leases that a VM holds only while it runs."""

ALL = frozenset(LeaseKind)


async def release(engine: Engine, vm_id: str, kinds: frozenset[LeaseKind]) -> None:
    """Release a VM's leases of these kinds."""
    await release_owner(engine, Owner.vm(vm_id), kinds)


async def release_owner(engine: Engine, owner: Owner, kinds: frozenset[LeaseKind] = ALL) -> None:
    """Release an owner's leases of these kinds.

    Each lease is removed after its resource is released.
    """
    for lease in engine.store.leases(owner):
        if lease.kind in kinds:
            await _RELEASE[lease.kind](engine, lease)
            engine.store.remove_lease(lease)


async def kill_all(engine: Engine) -> None:
    """Kill all VMs of an engine whose state directory was removed.

    No other engine could adopt them.
    """
    for vm_id, vm in list(engine.running.items()):
        log.warning("the state directory %s was removed: killing VM %s", engine.home.root, vm_id)
        del engine.running[vm_id]
        await vm.agent.close()
        await vm.machine.kill()
        await asyncio.to_thread(cgroup.remove, engine.cgroups, engine.cgroup_name(vm_id))


async def _release_process(engine: Engine, lease: Lease) -> None:
    if lease.owner.kind is OwnerKind.VM and (vm := engine.running.pop(lease.owner.id, None)):
        await vm.agent.close()
        await vm.machine.kill()
    role = lease.key.rpartition("/")[2]
    await asyncio.to_thread(processes.kill, engine.identity(lease.owner, role))


async def _release_cgroup(engine: Engine, lease: Lease) -> None:
    await asyncio.to_thread(cgroup.remove, engine.cgroups, lease.key)


async def _release_directory(engine: Engine, lease: Lease) -> None:
    await asyncio.to_thread(remove_tree, engine.directory(lease.owner))


_RELEASE: dict[LeaseKind, Callable[[Engine, Lease], Awaitable[None]]] = {
    LeaseKind.PROCESS: _release_process,
    LeaseKind.CGROUP: _release_cgroup,
    LeaseKind.DIRECTORY: _release_directory,
}
