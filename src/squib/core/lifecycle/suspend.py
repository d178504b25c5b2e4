"""``suspend``: save a VM's memory to the disk and end its VMM. A start lets it go on."""

from __future__ import annotations

import asyncio

from squib.core.engine import Engine
from squib.core.lifecycle import transitions
from squib.core.lifecycle.launch import machine_spec
from squib.core.lifecycle.release import RUN, release
from squib.core.lifecycle.verbs import Turn
from squib.core.snapshots import saved
from squib.core.snapshots.capture import capture, going_on_after_errors
from squib.core.snapshots.saved import SavedState
from squib.models import VMState
from squib.store.database import now
from squib.store.records import VMRecord
from squib.undo import to_its_end


async def suspend_vm(engine: Engine, ref: str) -> VMRecord:
    """Suspend the VM ``ref``: its memory goes to the disk, and its VMM ends.

    `start_vm` lets it go on, with everything in it as it was, except foreground commands: those end with their clients'
    connections. A suspended VM is not changed. After an error the VM goes on.

    Raises `WrongState` if the VM does not run, `NotFound`, `Unsupported`, `DiskFull`, `HostError`, `AgentError`.
    """
    vm_id = engine.store.find(ref).vm_id

    async def suspend(turn: Turn) -> VMRecord:
        record = engine.store.get_vm(vm_id)
        if record.state is VMState.SUSPENDED:
            return record
        if record.state not in transitions.UP:
            raise transitions.wrong_state(record, "suspend it")
        async with saved.preparing(engine.home.vm(vm_id)) as new, going_on_after_errors(engine, record):
            spec = await machine_spec(engine, record)
            machine = await capture(engine, record, spec, new, disk=False, sync=True, go_on=False)
            state = SavedState(machine=machine, same_boot=True, created_at=now())
            await to_its_end(asyncio.create_task(_finish(engine, record, state), name=f"suspend {vm_id}"))
        return engine.store.get_vm(vm_id)

    return await engine.verbs.run(vm_id, "suspend", suspend)


async def _finish(engine: Engine, record: VMRecord, state: SavedState) -> None:
    """Make the saved state the VM's, and end its VMM: both or, after an error, none."""
    await asyncio.to_thread(saved.commit, engine.home.vm(record.vm_id), state, durable=True)
    await release(engine, record.vm_id, RUN)
    transitions.transition(engine.store, record, VMState.SUSPENDED, pid=None, stopped_at=now())
