"""Snapshots: create, delete, and go back to one."""

from __future__ import annotations

from functools import partial

from squib.core import references
from squib.core.engine import Engine
from squib.core.lifecycle import transitions
from squib.core.lifecycle.create import new_id
from squib.core.lifecycle.launch import machine_spec
from squib.core.lifecycle.verbs import Turn
from squib.core.snapshots import catalog, saved
from squib.core.snapshots.capture import capture, capture_disk, going_on_after_errors
from squib.core.snapshots.catalog import Snapshot, SnapshotManifest
from squib.core.snapshots.saved import MachineState
from squib.host import files
from squib.models import VMState
from squib.paths import SavedPaths
from squib.store.database import now
from squib.store.records import Owner, VMRecord
from squib.undo import in_thread
from squib.version import VERSION


async def create_snapshot(
    engine: Engine, ref: str, *, name: str | None = None, disk_only: bool = False, go_on: bool = True
) -> Snapshot:
    """Save the state of the VM ``ref``: its memory, its devices and its disk, or only its disk.

    A VM that runs stands still for a moment, and goes on; without ``go_on`` it is paused afterwards. The snapshot is
    listed when it is complete and on the disk. A suspended VM can be saved too, and of any VM the disk.

    Raises `NameTaken`, `WrongState`, `NotFound`, `Unsupported`, `DiskFull`, `HostError`, `AgentError`.
    """
    vm_id = engine.store.get_vm(ref).vm_id
    snapshot_id = new_id("snap")
    catalog.check_free(engine.home, snapshot_id, name or snapshot_id)
    with references.choosing(engine):
        async with catalog.filling(engine.home) as paths:

            async def snapshot(turn: Turn) -> Snapshot:
                record = engine.store.get_vm(vm_id)
                async with going_on_after_errors(engine, record):
                    machine = await _save(engine, record, paths, disk_only=disk_only, go_on=go_on)
                    manifest = SnapshotManifest(
                        snapshot_id=snapshot_id,
                        name=name or snapshot_id,
                        vm_name=record.name,
                        parent=Owner.vm(vm_id).key(),
                        driver=record.driver,
                        accelerator=record.accelerator,
                        spec=record.spec,
                        machine=machine,
                        digests=await in_thread(saved.flush, paths),
                        squib_version=VERSION,
                        created_at=now(),
                    )
                    made = await catalog.publish(engine.home, paths, manifest)
                if record.state is VMState.RUNNING and not go_on:
                    transitions.transition(engine.store, record, VMState.PAUSED)
                return made

            return await engine.verbs.run(vm_id, "snapshot", snapshot)


async def _save(
    engine: Engine, record: VMRecord, paths: SavedPaths, *, disk_only: bool, go_on: bool
) -> MachineState | None:
    if record.state in transitions.UP:
        if disk_only:
            await capture_disk(engine, record, paths, go_on=go_on)
            return None
        spec = await machine_spec(engine, record)
        return await capture(engine, record, spec, paths, disk=True, sync=True, go_on=go_on)
    vm = engine.home.vm(record.vm_id)
    state = saved.find(vm)
    machine = state.machine if state and not disk_only else None
    if not machine and not disk_only:
        raise transitions.wrong_state(
            record, "save its memory", hint=f"squib snapshot create --disk-only {record.name}"
        )
    with files.disk_errors(paths.root):
        disk = vm.saved.overlay if vm.saved.overlay.exists() else vm.overlay
        await in_thread(files.sparse_copy, disk, paths.overlay)
        if machine:
            await in_thread(partial(saved.link, vm.saved, paths, disk=False, machine=True))
    return machine


async def delete_snapshot(engine: Engine, ref: str) -> None:
    """Delete a snapshot. VMs that were made from it go on, and start again. A damaged one can be deleted by its ID.

    Raises `NotFound`.
    """
    gone = catalog.withdraw(engine.home, ref)
    await in_thread(files.remove_tree, gone.root)
    references.prune(engine)
