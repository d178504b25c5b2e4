"""``stop``: end a VM in order, or by force when it does not end in time. The disk is kept."""

from __future__ import annotations

import asyncio
import logging

from squib.core.engine import Engine, RunningVM
from squib.core.lifecycle import transitions
from squib.core.lifecycle.release import RUN, release
from squib.core.lifecycle.start import cancel_start
from squib.errors import SquibError
from squib.models import VMState
from squib.store.database import VMRecord, now

log = logging.getLogger("squib.stop")

DEFAULT_STOP_TIMEOUT_S = 3.0
_GRACE_SHARE = 0.4
"""The part of the timeout that processes in the guest have between SIGTERM and SIGKILL; the rest is for syncing."""


async def stop_vm(engine: Engine, ref: str, *, timeout_s: float = DEFAULT_STOP_TIMEOUT_S) -> VMRecord:
    """Stop the VM ``ref``: the guest syncs its disk, ends its processes and powers off; after ``timeout_s`` it is
    killed.

    A start that is under way is cancelled. A VM that does not run is left as it is. Raises `NotFound`.
    """
    vm_id = engine.store.get_vm(ref).vm_id
    cancel_start(engine, vm_id)
    async with engine.lock(vm_id):
        record = engine.store.get_vm(vm_id)
        if record.state is VMState.STOPPING:  # a stop that could not be carried through
            await asyncio.shield(_settle(engine, record, "killed: an earlier stop had failed"))
            return engine.store.get_vm(vm_id)
        if record.state not in transitions.UP:
            return record
        transitions.transition(engine.store, record, VMState.STOPPING)
        vm = engine.running.get(vm_id)
        reason = "killed: the stop was interrupted"
        try:
            reason = await _power_off(vm, record.state, timeout_s) if vm else "its VMM had ended"
        finally:
            # Whatever happens to the caller, a stop that has begun is carried through.
            await asyncio.shield(_settle(engine, record, reason))
        return engine.store.get_vm(vm_id)


async def _power_off(vm: RunningVM, state: VMState, timeout_s: float) -> str:
    """Ask the guest to power off and wait for its VMM's end, at most ``timeout_s``. Returns how that went."""
    try:
        async with asyncio.timeout(timeout_s):
            try:
                if state is VMState.PAUSED:
                    await vm.machine.resume()
                await vm.agent.poweroff(grace_s=timeout_s * _GRACE_SHARE)
            except SquibError as error:  # which may be because the guest is powering off already
                log.warning("the guest did not take a stop: %s", error.message)
            await vm.machine.wait()
    except TimeoutError:
        return f"killed: the guest did not power off within {timeout_s:g} s"
    return "stopped"


async def _settle(engine: Engine, record: VMRecord, reason: str) -> None:
    await release(engine, record.vm_id, RUN)
    transitions.transition(engine.store, record, VMState.STOPPED, reason=reason, pid=None, stopped_at=now())
