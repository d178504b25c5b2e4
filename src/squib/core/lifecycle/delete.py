"""``delete``: end a VM, and remove it with its disk and all its resources."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from squib.core import references
from squib.core.engine import Engine
from squib.core.lifecycle import transitions, verbs
from squib.core.lifecycle.release import ALL, release
from squib.core.lifecycle.verbs import Turn
from squib.errors import NotFound, SquibError, Superseded
from squib.models import VMState
from squib.store.records import BrokenRecord, Owner, VMRecord

log = logging.getLogger("squib.delete")


async def delete_vm(engine: Engine, ref: str) -> None:
    """Delete the VM ``ref``, in any state. Its other verbs are superseded.

    When this returns, its processes, cgroup, disk and directory are removed. If another call deletes it at the same
    time, both succeed.

    Raises `NotFound`.
    """
    vm_id = engine.store.find(ref).vm_id

    async def delete(turn: Turn) -> None:
        try:
            record = engine.store.find(vm_id)
        except NotFound:
            return
        await asyncio.shield(remove(engine, record))

    await engine.verbs.run(vm_id, "delete", delete, verbs.DELETE)


async def wait_deleted(engine: Engine, ref: str) -> None:
    """Wait until the VM ``ref`` has been deleted.

    Raises `NotFound` if it does not exist.
    """
    await engine.deleted_event(engine.store.find(ref).vm_id).wait()


def delete_if_ephemeral(engine: Engine, record: VMRecord) -> None:
    """Delete an ephemeral VM that has stopped, in the background."""
    if record.spec.ephemeral:
        engine.background(_delete_quietly(engine, record.vm_id), name=f"delete {record.vm_id}")


def ephemeral_children(engine: Engine, vm_id: str) -> list[VMRecord]:
    """Return the VMs that are deleted with this one."""
    parent = Owner.vm(vm_id).key()
    return [vm for vm in engine.store.list_vms() if vm.spec.ephemeral and vm.spec.parent == parent]


async def _delete_quietly(engine: Engine, vm_id: str) -> None:
    async def nothing(turn: Turn) -> None:
        pass

    try:
        with contextlib.suppress(Superseded):
            await engine.verbs.run(vm_id, "deletion with its parent", nothing)  # let a stop end first
        await delete_vm(engine, vm_id)
    except NotFound:
        return
    except SquibError as error:
        log.error("VM %s could not be deleted: %s", vm_id, error.message)


async def remove(engine: Engine, record: VMRecord | BrokenRecord) -> None:
    """Delete a VM.

    The caller has its turn, or no other verb can run on it yet.
    """
    if isinstance(record, VMRecord):
        transitions.transition(engine.store, record, VMState.DELETING)
    await release(engine, record.vm_id, ALL)
    engine.store.remove_vm(record.vm_id)
    engine.forget(record.vm_id)
    for child in ephemeral_children(engine, record.vm_id):
        engine.background(_delete_quietly(engine, child.vm_id), name=f"delete {child.vm_id}")
    if isinstance(record, VMRecord):
        references.prune_after(engine, record)
