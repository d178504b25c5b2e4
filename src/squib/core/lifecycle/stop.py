"""``stop``: shut a VM down, or kill it if it does not power off in time.

The disk is kept.
"""

from __future__ import annotations

import asyncio
import logging

from squib.core.engine import Engine, RunningVM
from squib.core.lifecycle import transitions, verbs
from squib.core.lifecycle.delete import delete_if_ephemeral
from squib.core.lifecycle.release import RUN, release
from squib.core.lifecycle.verbs import Turn
from squib.core.snapshots import frozen
from squib.errors import SquibError, Superseded
from squib.models import VMState
from squib.store.database import now
from squib.store.records import VMRecord

log = logging.getLogger("squib.stop")

DEFAULT_STOP_TIMEOUT_S = 3.0
_GRACE_SHARE = 0.4
"""The share of the timeout that the guest's processes have between SIGTERM and SIGKILL. The rest is for syncing."""


async def stop_vm(engine: Engine, ref: str, *, timeout_s: float = DEFAULT_STOP_TIMEOUT_S) -> VMRecord:
    """Stop the VM ``ref``: ask it to power off, kill it after ``timeout_s``.

    The guest ends its processes and syncs its disk. A start is cancelled, and a stop with a later deadline is
    superseded. A VM that does not run is not changed.

    Raises `NotFound`.
    """
    vm_id = engine.store.get_vm(ref).vm_id

    async def stop(turn: Turn) -> VMRecord:
        record = engine.store.get_vm(vm_id)
        vm = engine.running.get(vm_id)
        if record.state is VMState.STOPPING:  # this stop supersedes another one, or the last one failed
            await _power_off_and_settle(engine, record, vm, turn, timeout_s)
        elif record.state in transitions.UP:
            transitions.transition(engine.store, record, VMState.STOPPING)
            await _power_off_and_settle(engine, record, vm, turn, timeout_s)
        return engine.store.get_vm(vm_id)

    try:
        return await engine.verbs.run(vm_id, "stop", stop, verbs.stop_within(timeout_s))
    except Superseded:
        return await stop_vm(engine, vm_id, timeout_s=timeout_s)  # superseded by a stop or a delete: wait for it


async def _power_off_and_settle(
    engine: Engine, record: VMRecord, vm: RunningVM | None, turn: Turn, timeout_s: float
) -> None:
    """Power off and settle.

    Once begun, a stop is completed even if its caller is cancelled.

    If a more urgent verb supersedes this one, that verb completes it.
    """
    reason = "killed: the stop was interrupted"
    try:
        reason = await _power_off(engine, record, vm, timeout_s) if vm else "its VMM had ended"
    finally:
        if turn.superseded_by is None:
            await asyncio.shield(_settle(engine, record, reason))


async def _power_off(engine: Engine, record: VMRecord, vm: RunningVM, timeout_s: float) -> str:
    """Ask the guest to power off, wait for its VMM, and return the outcome.

    Waits at most ``timeout_s``. The outcome is the reason that is stored with the VM's state.
    """
    try:
        async with asyncio.timeout(timeout_s):
            try:
                is_frozen = frozen.is_marked(engine.home.vm(record.vm_id))
                if (is_frozen or record.state is not VMState.RUNNING) and await vm.machine.is_paused():
                    await vm.machine.resume()
                if is_frozen:
                    await frozen.thaw(engine, record.vm_id, vm)  # its commands are to end by themselves
                await vm.agent.poweroff(grace_s=timeout_s * _GRACE_SHARE)
            except SquibError as error:  # possibly because the guest is already powering off
                log.warning("the guest did not accept a stop: %s", error.message)
            await vm.machine.wait()
    except TimeoutError:
        return f"killed: the guest did not power off within {timeout_s:g} s"
    return "stopped"


async def _settle(engine: Engine, record: VMRecord, reason: str) -> None:
    await release(engine, record.vm_id, RUN)
    transitions.transition(engine.store, record, VMState.STOPPED, reason=reason, pid=None, stopped_at=now())
    delete_if_ephemeral(engine, record)
