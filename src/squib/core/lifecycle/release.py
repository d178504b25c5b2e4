"""The one way out of every host resource: the leases of a VM, released newest first. Each step is idempotent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from squib.core.engine import Engine
from squib.host import cgroup, processes
from squib.host.files import remove_tree
from squib.store.database import Lease, LeaseKind

log = logging.getLogger("squib.release")

RUN = frozenset({LeaseKind.PROCESS, LeaseKind.CGROUP})
"""What a VM holds while it runs."""

ALL = frozenset(LeaseKind)


async def release(engine: Engine, vm_id: str, kinds: frozenset[LeaseKind]) -> None:
    """Release what a VM holds, of these kinds. A lease goes only after its resource is really gone."""
    for lease in _held(engine, vm_id, kinds):
        await _RELEASE[lease.kind](engine, lease)
        engine.store.remove_lease(lease)


async def end(engine: Engine, vm_id: str, kinds: frozenset[LeaseKind]) -> None:
    """Do as `release` and note nothing: the leases stay, for a release that follows."""
    for lease in _held(engine, vm_id, kinds):
        await _RELEASE[lease.kind](engine, lease)


def _held(engine: Engine, vm_id: str, kinds: frozenset[LeaseKind]) -> list[Lease]:
    return [lease for lease in engine.store.leases(vm_id) if lease.kind in kinds]


async def abandon(engine: Engine) -> None:
    """End all VMs of an engine whose state directory was removed: no other engine will ever know of them."""
    for vm_id, vm in list(engine.running.items()):
        log.warning("the state directory %s is gone: VM %s is ended", engine.home.root, vm_id)
        del engine.running[vm_id]
        await vm.agent.close()
        await vm.machine.kill()
        await asyncio.to_thread(cgroup.remove, engine.cgroups, engine.cgroup_name(vm_id))


async def _release_process(engine: Engine, lease: Lease) -> None:
    vm = engine.running.pop(lease.key, None)
    if vm:
        await vm.agent.close()
        await vm.machine.kill()
    paths = engine.home.vm(lease.key)
    await asyncio.to_thread(processes.kill, engine.vmm_identity(lease.key))
    for socket in paths.sockets():
        socket.unlink(missing_ok=True)


async def _release_cgroup(engine: Engine, lease: Lease) -> None:
    await asyncio.to_thread(cgroup.remove, engine.cgroups, lease.key)


async def _release_directory(engine: Engine, lease: Lease) -> None:
    await asyncio.to_thread(remove_tree, engine.home.vm(lease.key).root)


_RELEASE: dict[LeaseKind, Callable[[Engine, Lease], Awaitable[None]]] = {
    LeaseKind.PROCESS: _release_process,
    LeaseKind.CGROUP: _release_cgroup,
    LeaseKind.DIRECTORY: _release_directory,
}
