"""Settle what a former engine left. It may have been killed at any moment.

Afterwards every VM is usable or cleanly stopped, and every lease has an owner. Resources are released as everywhere
else (`squib.core.lifecycle.release`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection

from squib.artifacts import building
from squib.core import references
from squib.core.engine import VMM, Engine, RunningVM, cgroup_parent
from squib.core.lifecycle import transitions
from squib.core.lifecycle.bonds import expect_client
from squib.core.lifecycle.delete import delete_if_ephemeral, remove
from squib.core.lifecycle.launch import watch
from squib.core.lifecycle.release import RUN, release, release_owner
from squib.core.snapshots import catalog, frozen, saved, templates
from squib.drivers.base import Machine
from squib.drivers.firecracker import installed as firecracker
from squib.errors import DiskFull, SquibError
from squib.guest.agent import AgentClient
from squib.host import cgroup, processes
from squib.models import VMState
from squib.store.database import now
from squib.store.records import BrokenRecord, LeaseKind, Owner, VMRecord

log = logging.getLogger("squib.reconcile")

_POWER_OFF_WAIT_S = 3.0


async def reconcile(engine: Engine) -> None:
    """Settle all VMs and leases.

    A VM that cannot be settled is logged and left for the next engine. It does not affect other VMs.
    """
    try:
        _restore_lost_records(engine)
    except DiskFull as error:
        log.error("records that are lost could not be restored: %s", error.message)
    records = engine.store.all_vms()
    settling = [_settle(engine, record) for record in records]
    for result in await asyncio.gather(*settling, return_exceptions=True):
        if isinstance(result, SquibError | OSError):
            log.error("a VM could not be settled", exc_info=result)
        elif isinstance(result, BaseException):
            raise result
    known = {record.vm_id for record in records}
    await _release_leases_without_owner(engine, known)
    await _end_unknown_vmms(engine, known)
    parents = {Owner.vm(vm_id).key() for vm_id in known}
    for vm in engine.store.list_vms():
        if vm.bound:
            expect_client(engine, vm.vm_id)
        if vm.state in (VMState.STOPPED, VMState.ERROR) or vm.spec.parent not in parents:
            delete_if_ephemeral(engine, vm)
    await building.sweep(engine.home)
    firecracker.sweep(engine.home)
    references.prune(engine)
    templates.prune(engine)
    catalog.sweep(engine.home)


def _restore_lost_records(engine: Engine) -> None:
    """Give a row and a lease to each VM directory that the database lost.

    A VM whose row is lost can only be listed and removed. Its disk is kept until then.
    """
    known = {record.vm_id for record in engine.store.all_vms()}
    leased = {lease.owner for lease in engine.store.leases() if lease.kind is LeaseKind.DIRECTORY}
    for folder in engine.home.vms.iterdir():
        vm_id, owner, overlay = folder.name, Owner.vm(folder.name), engine.home.vm(folder.name).overlay
        if (vm_id in known and owner in leased) or not overlay.exists():
            continue
        log.error("VM %s is not in the database, or its lease is not", vm_id)
        if vm_id not in known:
            engine.store.add_lost(vm_id, f"the database lost it; its disk is {overlay}")
        engine.store.add_lease(owner, LeaseKind.DIRECTORY, owner.key())
        engine.store.add_lease(owner, LeaseKind.CGROUP, engine.cgroup_name(vm_id))
        engine.store.add_lease(owner, LeaseKind.PROCESS, owner.key(VMM))


async def _release_leases_without_owner(engine: Engine, known: Collection[str]) -> None:
    owners = {lease.owner for lease in engine.store.leases()}
    for owner in owners - {Owner.vm(vm_id) for vm_id in known}:
        await release_owner(engine, owner)


async def _end_unknown_vmms(engine: Engine, known: Collection[str]) -> None:
    """End VMMs without a row, for example after the database was lost.

    Their directories stay: `doctor` lists them.
    """
    parent = cgroup_parent(engine.home)
    folders = {path.name for path in engine.home.vms.iterdir() if path.is_dir()}
    for vm_id in (folders | cgroup.children(engine.cgroups, parent)) - set(known):
        identity = engine.vmm_identity(vm_id)
        if processes.find(identity):
            log.warning("ending the VMM of %s, a VM that is not in the database", vm_id)
        await asyncio.to_thread(processes.kill, identity)
        await asyncio.to_thread(cgroup.remove, engine.cgroups, engine.cgroup_name(vm_id))


async def _settle(engine: Engine, record: VMRecord | BrokenRecord) -> None:
    if isinstance(record, BrokenRecord):  # end its VMM; its disk stays until a user deletes the VM
        log.error("the database record of VM %s is damaged: %s", record.vm_id, record.reason)
        await release(engine, record.vm_id, RUN)
        return
    await asyncio.to_thread(saved.settle, engine.home.vm(record.vm_id))
    goes_on = engine.home.vm(record.vm_id).saved.manifest.exists()
    match record.state:
        case VMState.CREATING | VMState.DELETING:
            log.info("deleting VM %s: it was %s when the engine ended", record.vm_id, record.state)
            await remove(engine, record)
        case VMState.STARTING if not goes_on and frozen.is_marked(engine.home.vm(record.vm_id)):
            # It went on from its saved memory, which is nowhere else.
            transitions.transition(engine.store, record, VMState.RUNNING, started_at=now(), stopped_at=None)
            await _adopt(engine, record)
        case VMState.STARTING:
            await release(engine, record.vm_id, RUN)
            reason = "the engine ended while the VM was starting"
            state = VMState.SUSPENDED if goes_on else VMState.STOPPED
            transitions.transition(engine.store, record, state, reason=reason, pid=None, stopped_at=now())
        case VMState.STOPPING:
            await _finish_stop(engine, record)
        case VMState.RUNNING | VMState.PAUSED if goes_on:  # the engine ended while it was suspended or rolled back
            await release(engine, record.vm_id, RUN)
            transitions.transition(engine.store, record, VMState.SUSPENDED, pid=None, stopped_at=now())
        case VMState.RUNNING | VMState.PAUSED:
            await _adopt(engine, record)
        case VMState.STOPPED | VMState.ERROR if goes_on:
            await release(engine, record.vm_id, RUN)
            transitions.transition(engine.store, record, VMState.SUSPENDED)
        case VMState.SUSPENDED if not goes_on:
            await release(engine, record.vm_id, RUN)
            transitions.transition(engine.store, record, VMState.STOPPED, reason="its saved memory is gone")
        case VMState.CREATED | VMState.SUSPENDED | VMState.STOPPED | VMState.ERROR:
            await release(engine, record.vm_id, RUN)


async def _adopt(engine: Engine, record: VMRecord) -> None:
    machine = await _find_machine(engine, record)
    if machine is None:
        await release(engine, record.vm_id, RUN)
        reason = "the VMM ended while no engine ran"
        transitions.transition(engine.store, record, VMState.ERROR, reason=reason, pid=None, stopped_at=now())
        return
    vm = engine.running[record.vm_id] = RunningVM(machine, AgentClient(machine.connect_agent))
    watch(engine, record.vm_id, vm)
    if record.state is VMState.PAUSED:
        await machine.pause()
    if frozen.is_marked(engine.home.vm(record.vm_id)):
        frozen.wake_later(engine, record.vm_id, vm)
    log.info("adopted VM %s, pid %d", record.vm_id, machine.pid)


async def _find_machine(engine: Engine, record: VMRecord) -> Machine | None:
    driver = engine.drivers.get(record.driver)
    return await driver.adopt(engine.driver_folder(record), engine.vmm_identity(record.vm_id))


async def _finish_stop(engine: Engine, record: VMRecord) -> None:
    """Finish a stop: the guest was already asked to power off.

    Give it `_POWER_OFF_WAIT_S`, then kill its VMM.
    """
    if machine := await _find_machine(engine, record):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(machine.wait(), _POWER_OFF_WAIT_S)
        await machine.kill()
    await release(engine, record.vm_id, RUN)
    reason = "stopped; the engine ended during the stop"
    transitions.transition(engine.store, record, VMState.STOPPED, reason=reason, pid=None, stopped_at=now())
