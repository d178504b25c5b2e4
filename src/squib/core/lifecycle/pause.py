"""``pause`` and ``resume``: a paused VM keeps its memory and uses no CPU."""

from __future__ import annotations

import asyncio
import logging

from squib.core.engine import Engine, RunningVM
from squib.core.lifecycle import transitions
from squib.core.lifecycle.verbs import Turn
from squib.core.snapshots import frozen
from squib.errors import AgentError, NotFound, SquibError
from squib.models import VMState
from squib.store.records import VMRecord
from squib.undo import Undo

log = logging.getLogger("squib.pause")

_ASK_AGAIN_S = 0.5


async def pause_vm(engine: Engine, ref: str) -> VMRecord:
    """Pause the VM ``ref``: stop its vCPUs.

    A paused VM is not changed. Its commands and their timeouts stop with it. If the VMM does not respond, the state is
    settled when it responds again.

    Raises `WrongState` if the VM does not run, `NotFound`, and `ToolFailed` if the VMM does not respond.
    """
    vm_id = engine.store.find(ref).vm_id

    async def pause(turn: Turn) -> VMRecord:
        record = engine.store.get_vm(vm_id)
        if record.state is VMState.PAUSED:
            return record
        # The state is written first: if the engine dies here, the next engine pauses the VM.
        transitions.transition(engine.store, record, VMState.PAUSED)
        vm = engine.vm_of(record)

        def undo() -> None:
            transitions.transition(engine.store, record, VMState.RUNNING)
            _settle_later(engine, vm_id, vm)

        with Undo(undo):
            await vm.machine.pause()
        return engine.store.get_vm(vm_id)

    return await engine.verbs.run(vm_id, "pause", pause)


async def resume_vm(engine: Engine, ref: str) -> VMRecord:
    """Resume the VM ``ref`` and set its clock. A running VM is not changed.

    Raises `WrongState` if the VM is not paused, `NotFound`, and `ToolFailed` as `pause_vm` does.
    """
    vm_id = engine.store.find(ref).vm_id

    async def resume(turn: Turn) -> VMRecord:
        record = engine.store.get_vm(vm_id)
        if record.state is VMState.RUNNING:
            return record
        if record.state is not VMState.PAUSED:
            raise transitions.wrong_state(record, "resume it")
        vm = engine.vm_of(record)
        with Undo(lambda: _settle_later(engine, vm_id, vm)):
            await vm.machine.resume()
        transitions.transition(engine.store, record, VMState.RUNNING)
        try:
            await frozen.thaw(engine, vm_id, vm)
        except AgentError as error:
            log.warning("the clock of VM %s still shows the time of its pause: %s", vm_id, error.message)
            frozen.wake_later(engine, vm_id, vm)
        return engine.store.get_vm(vm_id)

    return await engine.verbs.run(vm_id, "resume", resume)


def _settle_later(engine: Engine, vm_id: str, vm: RunningVM) -> None:
    """Ask the VMM for its state until it responds, in the background.

    The answer is stored. A command to the VMM that failed leaves its state unknown.
    """
    engine.background(_settle(engine, vm_id, vm), name=f"settle {vm_id}")


async def _settle(engine: Engine, vm_id: str, vm: RunningVM) -> None:
    while engine.running.get(vm_id) is vm:
        try:
            paused = await vm.machine.is_paused()
        except SquibError:
            await asyncio.sleep(_ASK_AGAIN_S)
            continue

        async def record(turn: Turn, paused: bool = paused) -> None:
            if engine.running.get(vm_id) is vm:
                to = VMState.PAUSED if paused else VMState.RUNNING
                engine.store.change_state(vm_id, expected=transitions.UP - {to}, to=to)
                if to is VMState.RUNNING:
                    frozen.wake_later(engine, vm_id, vm)

        try:
            await engine.verbs.run(vm_id, "settle", record)
        except (SquibError, NotFound):
            continue  # superseded: the VM may have ended
        return
