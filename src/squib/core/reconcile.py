"""What an engine does first: settle what a former one, which may have been killed at any moment, has left.

Every VM ends up usable or cleanly stopped, and no lease stays without an owner. The same release path as
everywhere else does the work.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from squib.artifacts import building
from squib.core.engine import Engine, RunningVM
from squib.core.lifecycle import transitions
from squib.core.lifecycle.delete import remove
from squib.core.lifecycle.release import ALL, RUN, release
from squib.core.lifecycle.start import watch
from squib.errors import SquibError
from squib.guest.agent import AgentClient
from squib.models import VMState
from squib.store.database import VMRecord, now

log = logging.getLogger("squib.reconcile")

_POWER_OFF_WAIT_S = 3.0


async def reconcile(engine: Engine) -> None:
    """Settle all VMs and leases. A VM that cannot be settled is logged and left for the next engine; it stops no
    other.
    """
    records = engine.store.list_vms()
    for result in await asyncio.gather(*(_settle(engine, record) for record in records), return_exceptions=True):
        if isinstance(result, SquibError | OSError):
            log.error("a VM could not be settled", exc_info=result)
        elif isinstance(result, BaseException):
            raise result
    known = {record.vm_id for record in records}
    for vm_id in {lease.vm_id for lease in engine.store.leases()} - known:
        await release(engine, vm_id, ALL)
    await building.sweep(engine.home)


async def _settle(engine: Engine, record: VMRecord) -> None:
    match record.state:
        case VMState.CREATING | VMState.DELETING:
            log.info("VM %s was %s when the engine ended: deleted", record.vm_id, record.state)
            await remove(engine, record)
        case VMState.STARTING:
            await release(engine, record.vm_id, RUN)
            reason = "the engine ended while it started"
            transitions.transition(engine.store, record, VMState.STOPPED, reason=reason, pid=None, stopped_at=now())
        case VMState.STOPPING:
            await _finish_stop(engine, record)
        case VMState.RUNNING | VMState.PAUSED:
            await _adopt(engine, record)
        case VMState.CREATED | VMState.STOPPED | VMState.ERROR:
            await release(engine, record.vm_id, RUN)


async def _adopt(engine: Engine, record: VMRecord) -> None:
    paths = engine.home.vm(record.vm_id)
    machine = await engine.driver.adopt(paths, engine.vmm_identity(record.vm_id))
    if machine is None:
        await release(engine, record.vm_id, RUN)
        reason = "the VMM ended while no engine ran"
        transitions.transition(engine.store, record, VMState.ERROR, reason=reason, pid=None, stopped_at=now())
        return
    vm = engine.running[record.vm_id] = RunningVM(machine, AgentClient(machine.connect_agent))
    watch(engine, record.vm_id, vm)
    if record.state is VMState.PAUSED:
        await machine.pause()
    log.info("adopted VM %s, pid %d", record.vm_id, machine.pid)


async def _finish_stop(engine: Engine, record: VMRecord) -> None:
    """The guest was asked to power off: it has a moment to finish that."""
    identity = engine.vmm_identity(record.vm_id)
    if machine := await engine.driver.adopt(engine.home.vm(record.vm_id), identity):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(machine.wait(), _POWER_OFF_WAIT_S)
        await machine.kill()
    await release(engine, record.vm_id, RUN)
    reason = "stopped; the engine ended meanwhile"
    transitions.transition(engine.store, record, VMState.STOPPED, reason=reason, pid=None, stopped_at=now())
