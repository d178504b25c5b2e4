"""``rollback``: take a VM back to a snapshot, in place."""

from __future__ import annotations

import asyncio
from functools import partial

from squib.core.engine import Engine
from squib.core.lifecycle import transitions
from squib.core.lifecycle.boot import DEFAULT_BOOT_TIMEOUT_S
from squib.core.lifecycle.release import RUN, release
from squib.core.lifecycle.start import start_vm
from squib.core.lifecycle.verbs import Turn
from squib.core.snapshots import catalog, from_snapshot, saved
from squib.core.snapshots.catalog import Snapshot
from squib.core.snapshots.saved import SavedState
from squib.errors import InvalidArgument
from squib.models import VMState
from squib.store.database import now
from squib.store.records import Owner, VMRecord
from squib.undo import in_thread, to_its_end

_MACHINE = ("vcpu_count", "mem_size_mib", "disk_size_mib", "kernel", "rootfs", "boot_args", "nested")


async def rollback_vm(
    engine: Engine, ref: str, snapshot_ref: str, *, boot_timeout_s: float = DEFAULT_BOOT_TIMEOUT_S
) -> VMRecord:
    """Take the VM ``ref`` back to a snapshot, and start it. What it did since is lost; its ID and name stay.

    Until the snapshot's files are in place, the VM is as it was. If it then does not start, it is suspended, in the
    snapshot's state.

    Raises `NotFound`, `InvalidArgument` if the snapshot is of another machine, `Unsupported`, `DiskFull`, `WrongState`,
    and the errors of `start_vm`.
    """
    vm_id = engine.store.get_vm(ref).vm_id
    snapshot = catalog.find(engine.home, snapshot_ref)

    async def roll_back(turn: Turn) -> None:
        record = engine.store.get_vm(vm_id)
        _check_machine(record, snapshot)
        if VMState.SUSPENDED not in (record.state, *transitions.TRANSITIONS[record.state]):
            raise transitions.wrong_state(record, "roll it back")
        await from_snapshot.check(engine, snapshot, record)
        async with saved.preparing(engine.home.vm(vm_id)) as new:
            machine = snapshot.manifest.machine
            await in_thread(partial(saved.link, snapshot.paths, new, disk=True, machine=machine is not None))
            state = SavedState(machine=machine, same_boot=False, created_at=now())
            await to_its_end(asyncio.create_task(_finish(engine, record, state, snapshot), name=f"rollback {vm_id}"))

    await engine.verbs.run(vm_id, "rollback", roll_back)
    return await start_vm(engine, vm_id, boot_timeout_s=boot_timeout_s)


async def _finish(engine: Engine, record: VMRecord, state: SavedState, snapshot: Snapshot) -> None:
    """Put the snapshot's state in place, and end the VMM: both or, after an error, none."""
    await asyncio.to_thread(saved.commit, engine.home.vm(record.vm_id), state, durable=True)
    await release(engine, record.vm_id, RUN)
    if record.state is not VMState.SUSPENDED:
        reason = f"rolled back to {snapshot.name}"
        transitions.transition(engine.store, record, VMState.SUSPENDED, reason=reason, pid=None, stopped_at=now())


def _check_machine(record: VMRecord, snapshot: Snapshot) -> None:
    manifest = snapshot.manifest
    pairs = [(name, getattr(record.spec, name), getattr(manifest.spec, name)) for name in _MACHINE]
    pairs.append(("driver", record.driver, manifest.driver))
    differences = [f"{name} is {own}, there {other}" for name, own, other in pairs if own != other]
    if differences:
        of = "another VM" if manifest.parent != Owner.vm(record.vm_id).key() else "this VM"
        raise InvalidArgument(
            f"VM {record.name} cannot be rolled back to {snapshot.name}, a snapshot of {of}: {'; '.join(differences)}",
            hint=f"squib create --snapshot {snapshot.name} makes a new VM",
        )
