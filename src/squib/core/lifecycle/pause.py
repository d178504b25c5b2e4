"""``pause`` and ``resume``: a VM that stands still keeps its memory and uses no processor."""

from __future__ import annotations

import logging

from squib.core.engine import Engine
from squib.core.lifecycle import transitions
from squib.errors import AgentError, SquibError
from squib.models import VMState
from squib.store.database import VMRecord

log = logging.getLogger("squib.pause")


async def pause_vm(engine: Engine, ref: str) -> VMRecord:
    """Halt the processors of the VM ``ref``. A VM that is paused is left as it is.

    Commands that run are halted with it, their timeouts too. Raises `WrongState` if it does not run, `NotFound`.
    """
    vm_id = engine.store.get_vm(ref).vm_id
    async with engine.lock(vm_id):
        record = engine.store.get_vm(vm_id)
        if record.state is VMState.PAUSED:
            return record
        # The state first: if the engine dies in between, the next one pauses it again.
        transitions.transition(engine.store, record, VMState.PAUSED)
        try:
            await engine.vm_of(record).machine.pause()
        except SquibError:
            transitions.transition(engine.store, record, VMState.RUNNING)
            raise
        return engine.store.get_vm(vm_id)


async def resume_vm(engine: Engine, ref: str) -> VMRecord:
    """Let the VM ``ref`` go on, with the time of now. A VM that runs is left as it is.

    Raises `WrongState` if it is not paused, `NotFound`.
    """
    vm_id = engine.store.get_vm(ref).vm_id
    async with engine.lock(vm_id):
        record = engine.store.get_vm(vm_id)
        if record.state is VMState.RUNNING:
            return record
        if record.state is not VMState.PAUSED:
            raise transitions.wrong_state(record, "resuming")
        vm = engine.vm_of(record)
        await vm.machine.resume()
        transitions.transition(engine.store, record, VMState.RUNNING)
        try:
            await vm.agent.set_clock()
        except AgentError as error:
            log.warning("VM %s goes on with the time at which it was paused: %s", vm_id, error.message)
        return engine.store.get_vm(vm_id)
