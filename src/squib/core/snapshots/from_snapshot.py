"""What a VM that is made from a snapshot gets of it."""

from __future__ import annotations

from functools import partial

from squib.core.engine import Engine
from squib.core.lifecycle.launch import machine_spec
from squib.core.snapshots import saved
from squib.core.snapshots.catalog import Snapshot, SnapshotManifest
from squib.core.snapshots.saved import MachineState, SavedState
from squib.errors import InvalidArgument
from squib.host import files
from squib.models import VMConfig
from squib.paths import SavedPaths, VMPaths
from squib.store.database import now
from squib.store.records import Owner, VMRecord, VMSpec
from squib.undo import in_thread

_OWN = {"vm_id", "name", "project", "env_vars", "cwd", "user", "cold", "snapshot", "jailer"}
"""What a VM made from a snapshot may have of its own. The rest comes from the snapshot."""


def spec(config: VMConfig, manifest: SnapshotManifest) -> VMSpec:
    """Return the spec of a VM made from a snapshot.

    Raises `InvalidArgument` if ``config`` asks for another machine or disk than the snapshot's.
    """
    given = config.model_fields_set - _OWN
    changed = sorted(name for name in given if not _is_the_snapshots(name, config, manifest))
    if changed:
        raise InvalidArgument(
            f"{', '.join(changed)} cannot be set with a snapshot: snapshot {manifest.name} fixes it",
            hint=f"leave out {', '.join(changed)}",
        )
    saved_spec = manifest.spec
    return saved_spec.model_copy(
        update={
            "project": config.project or saved_spec.project,
            "env_vars": saved_spec.env_vars | config.env_vars,
            "cwd": config.cwd or saved_spec.cwd,
            "user": config.user or saved_spec.user,
            "cold": False,
            "jailer": config.jailer,
            "driver_reason": f"snapshot {manifest.name} was made with it",
            "parent": Owner.snapshot(manifest.snapshot_id).key(),
            "ephemeral": False,
        }
    )


def _is_the_snapshots(name: str, config: VMConfig, manifest: SnapshotManifest) -> bool:
    """Return whether an option that was given is what the snapshot has anyway."""
    value = getattr(config, name)
    if name == "driver":
        return value in ("auto", manifest.driver)
    return bool(value == getattr(manifest.spec, name, None))


async def check(engine: Engine, snapshot: Snapshot, record: VMRecord) -> None:
    """Check that a VM can go on from a snapshot on this host. Raises `Unsupported`, which says why not."""
    if machine := snapshot.manifest.machine:
        fingerprint = await engine.drivers.get(record.driver).fingerprint(await machine_spec(engine, record))
        hint = f"squib create --snapshot {snapshot.name} --cold boots from its disk"
        saved.check_fits(f"snapshot {snapshot.name}", machine, fingerprint, hint=hint)


async def fill_from(vm: VMPaths, source: SavedPaths, machine: MachineState | None, *, durable: bool) -> None:
    """Make the files of a new VM: a copy of a saved disk, and links to a saved machine if there is one.

    Raises `DiskFull`, `OSError`.
    """
    with files.disk_errors(vm.root):
        await in_thread(files.sparse_copy, source.overlay, vm.overlay)
        if durable:
            await in_thread(files.sync, vm.overlay)
        if machine:
            async with saved.preparing(vm) as new:
                await in_thread(partial(saved.link, source, new, disk=False, machine=True))
                state = SavedState(machine=machine, same_boot=False, created_at=now())
                await in_thread(partial(saved.commit, vm, state, durable=durable))
