"""``delete``: end a VM for good and release everything that it had."""

from __future__ import annotations

import asyncio

from squib.core.engine import Engine
from squib.core.lifecycle import transitions
from squib.core.lifecycle.release import ALL, end, release
from squib.core.lifecycle.start import cancel_start
from squib.errors import DiskFull, NotFound
from squib.models import VMState
from squib.store.database import VMRecord


async def delete_vm(engine: Engine, ref: str) -> None:
    """Delete the VM ``ref`` in whatever state it is. When this returns its processes, cgroup, disk and directory are
    gone.

    If another call deletes it at the same time, both succeed. Raises `NotFound`.
    """
    vm_id = engine.store.get_vm(ref).vm_id
    cancel_start(engine, vm_id)
    async with engine.lock(vm_id):
        try:
            record = engine.store.get_vm(vm_id)
        except NotFound:
            return
        await asyncio.shield(remove(engine, record))


async def until_deleted(engine: Engine, ref: str) -> None:
    """Return when the VM ``ref`` is no more. Raises `NotFound` if there is none."""
    await engine.gone(engine.store.get_vm(ref).vm_id).wait()


async def remove(engine: Engine, record: VMRecord) -> None:
    """Delete a VM whose lock is held (or that nobody knows of yet)."""
    try:
        transitions.transition(engine.store, record, VMState.DELETING)
    except DiskFull:
        # Nothing can be noted, and it may be this VM that fills the disk: what it has goes first, then the notes of it.
        await end(engine, record.vm_id, ALL)
        transitions.transition(engine.store, record, VMState.DELETING)
    await release(engine, record.vm_id, ALL)
    engine.store.remove_vm(record.vm_id)
    engine.forget(record.vm_id)
