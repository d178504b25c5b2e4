"""Let a VM go on from its saved state (`squib.core.snapshots.saved`)."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from squib.core.engine import Engine, RunningVM
from squib.core.lifecycle import transitions
from squib.core.lifecycle.launch import launch, machine_spec, until_set_up, watch
from squib.core.lifecycle.release import RUN, release
from squib.core.snapshots import frozen, saved
from squib.core.snapshots.frozen import Needs
from squib.core.snapshots.saved import MachineState
from squib.errors import SquibError
from squib.models import VMState
from squib.store.database import now
from squib.store.records import VMRecord
from squib.undo import AsyncUndo, Undo, in_thread, to_its_end

log = logging.getLogger("squib.boot")


async def go_on(engine: Engine, record: VMRecord, machine: MachineState, timeout_s: float, *, same_boot: bool) -> None:
    """Run a VM from its saved state, wait for its agent, and set the VM to ``running``.

    The state is removed just before the guest goes on. Until then, an error or a cancellation changes nothing. From
    then on the VM runs, because what it has in its memory is nowhere else. If its agent does not answer in time, that
    is an error, but the VM is ``running``, and is waited for in the background.

    Raises `Unsupported` if it was saved by another kind of machine, `BootFailed`, `BootTimeout`.
    """
    paths = engine.home.vm(record.vm_id)
    async with AsyncUndo(lambda: asyncio.shield(release(engine, record.vm_id, RUN))):
        spec = await machine_spec(engine, record)
        fingerprint = await engine.drivers.get(record.driver).fingerprint(spec)
        hint = f"squib start --cold {record.name} discards its memory and boots from its disk"
        saved.check_fits(f"VM {record.name}", machine, fingerprint, hint=hint)
        await in_thread(saved.take_disk, paths)
        vm = await launch(engine, record, replace(spec, memory=saved.memory_of(paths.saved, machine)))
        frozen.mark(paths, Needs.SETUP_OF_SAME_BOOT if same_boot else Needs.SETUP)
    await to_its_end(asyncio.create_task(_let_run(engine, record, vm), name=f"go on {record.vm_id}"))

    async def set_up() -> None:
        await vm.agent.shake_hands(timeout_s=timeout_s)
        await frozen.thaw(engine, record.vm_id, vm)

    hint = f"the VM is running and squib keeps asking its agent: squib inspect {record.name}"
    with Undo(lambda: frozen.wake_later(engine, record.vm_id, vm)):
        await until_set_up(record, vm, set_up(), timeout_s=timeout_s, hint=hint)


async def _let_run(engine: Engine, record: VMRecord, vm: RunningVM) -> None:
    """Remove the saved state, and let the guest run."""
    paths = engine.home.vm(record.vm_id)
    try:
        await asyncio.to_thread(saved.discard, paths)  # from here on the disk may change
    except OSError as error:
        if paths.saved.manifest.exists():
            await release(engine, record.vm_id, RUN)
            raise
        log.warning("VM %s goes on, but not all of its saved state could be removed: %s", record.vm_id, error)
    transitions.transition(engine.store, record, VMState.RUNNING, started_at=now(), stopped_at=None)
    watch(engine, record.vm_id, vm)
    try:
        await vm.machine.resume()
    except SquibError as error:
        log.warning("VM %s does not go on yet: %s", record.vm_id, error.message)
