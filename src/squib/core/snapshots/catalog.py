"""The snapshots of a state directory.

Each is a directory with its files and a manifest. It gets its name when it is complete and on the disk, so half a
snapshot is never found. What has another name is left of an engine that was killed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Literal

from squib.core.snapshots import saved
from squib.core.snapshots.saved import MachineState
from squib.errors import NameTaken, NotFound, RecordCorrupt
from squib.host import files
from squib.models import SnapshotInfo, StoredModel
from squib.paths import Home, SavedPaths
from squib.store.records import VMSpec
from squib.undo import in_thread

log = logging.getLogger("squib.snapshots")

_UNFINISHED = "."
"""How the name of a directory begins that is no snapshot, or not yet, or not any more."""


class SnapshotManifest(StoredModel):
    """What a snapshot is of.

    ``spec`` is the VM's. ``machine`` is ``None`` if only the disk was saved. ``parent`` is the key of the VM.
    ``digests`` are those of the files (`squib.host.files.sparse_sha256`).
    """

    version: Literal[1] = 1
    snapshot_id: str
    name: str
    vm_name: str
    parent: str
    driver: str
    accelerator: str
    spec: VMSpec
    machine: MachineState | None
    digests: dict[str, str]
    squib_version: str
    created_at: datetime

    def to_json(self) -> str:
        """Encode it. Unlike pydantic's JSON, this accepts lone surrogates, as in an environment."""
        return json.dumps(self.model_dump(exclude={"created_at"}) | {"created_at": self.created_at.isoformat()})


class Snapshot:
    """A snapshot on the disk."""

    def __init__(self, paths: SavedPaths, manifest: SnapshotManifest) -> None:
        self.id = manifest.snapshot_id
        self.name = manifest.name
        self.paths = paths
        self.manifest = manifest

    def describe(self) -> SnapshotInfo:
        """Describe it for clients."""
        manifest = self.manifest
        return SnapshotInfo(
            snapshot_id=self.id,
            name=self.name,
            vm_id=manifest.parent.partition("/")[2],
            vm_name=manifest.vm_name,
            disk_only=manifest.machine is None,
            driver=manifest.driver,
            runtime=manifest.spec.runtime,
            vcpu_count=manifest.spec.vcpu_count,
            mem_size_mib=manifest.spec.mem_size_mib,
            disk_size_mib=manifest.spec.disk_size_mib,
            size_bytes=saved.size_bytes(self.paths),
            made_with=(manifest.machine.fingerprint if manifest.machine else {}) | {"squib": manifest.squib_version},
            created_at=manifest.created_at,
        )


def all_snapshots(home: Home) -> list[Snapshot]:
    """Return all snapshots, oldest first. A damaged one is logged."""
    found = []
    for snapshot in _each(home):
        if isinstance(snapshot, RecordCorrupt):
            log.error("%s", snapshot.message)
        else:
            found.append(snapshot)
    return sorted(found, key=lambda snapshot: snapshot.manifest.created_at)


def specs(home: Home) -> list[VMSpec]:
    """Return the specs of all snapshots.

    Raises `RecordCorrupt` if one is damaged: what it uses is not known.
    """
    found = []
    for snapshot in _each(home):
        if isinstance(snapshot, RecordCorrupt):
            raise snapshot
        found.append(snapshot.manifest.spec)
    return found


def _each(home: Home) -> list[Snapshot | RecordCorrupt]:
    if not home.snapshots.is_dir():
        return []
    folders = (path for path in sorted(home.snapshots.iterdir()) if not path.name.startswith(_UNFINISHED))
    return [_read(SavedPaths(folder)) for folder in folders]


def _read(paths: SavedPaths) -> Snapshot | RecordCorrupt:
    try:
        manifest = SnapshotManifest.model_validate(json.loads(paths.manifest.read_bytes()))
        if missing := saved.missing_file(paths, machine=manifest.machine is not None):
            raise ValueError(f"{missing.name} is missing")
    except (OSError, ValueError) as error:
        return RecordCorrupt(
            f"the snapshot {paths.root} is damaged: {str(error).splitlines()[0]}",
            hint=f"squib snapshot rm {paths.root.name}",
        )
    return Snapshot(paths, manifest)


def find(home: Home, ref: str) -> Snapshot:
    """Return the snapshot with this ID or name. Raises `NotFound`."""
    for snapshot in all_snapshots(home):
        if ref in (snapshot.id, snapshot.name):
            return snapshot
    raise NotFound(f"there is no snapshot {ref}", hint="squib snapshot ls")


def check_free(home: Home, *names: str) -> None:
    """Check that no snapshot has one of these IDs or names. Raises `NameTaken`."""
    for snapshot in all_snapshots(home):
        for name in names:
            if name in (snapshot.id, snapshot.name):
                raise NameTaken(
                    f"there already is a snapshot {name}", hint=f"choose another --name, or: squib snapshot rm {name}"
                )


@contextlib.asynccontextmanager
async def filling(home: Home) -> AsyncIterator[SavedPaths]:
    """Yield a new empty directory for a snapshot, or for a state that is used only once.

    It is removed at the end, unless it was published.
    """
    paths = _unfinished(home)
    try:
        with files.disk_errors(home.root):
            paths.root.mkdir(mode=0o700)
        yield paths
    finally:
        await in_thread(files.remove_tree, paths.root)


def _unfinished(home: Home) -> SavedPaths:
    return SavedPaths(home.snapshots / f"{_UNFINISHED}{secrets.token_hex(8)}")


async def publish(home: Home, paths: SavedPaths, manifest: SnapshotManifest) -> Snapshot:
    """Make a directory whose files are on the disk a snapshot, in one step.

    Raises `NameTaken`, `DiskFull`.
    """
    await in_thread(files.write_atomic, paths.manifest, manifest.to_json().encode())
    check_free(home, manifest.snapshot_id, manifest.name)  # nothing can happen between this and the next step
    target = home.snapshot(manifest.snapshot_id)
    paths.root.rename(target.root)
    await in_thread(files.sync_directory, home.snapshots)
    return Snapshot(target, manifest)


def withdraw(home: Home, ref: str) -> SavedPaths:
    """Take a snapshot away, in one step; return its directory. A damaged one is known by its ID only.

    Raises `NotFound`.
    """
    paths = home.snapshot(ref)
    if not (paths.root.is_dir() and isinstance(_read(paths), RecordCorrupt)):
        paths = find(home, ref).paths
    gone = _unfinished(home)
    paths.root.rename(gone.root)
    return gone


def sweep(home: Home) -> None:
    """Remove what a killed engine has left: no engine works on it any more. A failure is logged."""
    for folder in home.snapshots.glob(f"{_UNFINISHED}*"):
        try:
            files.remove_tree(folder)
        except OSError as error:
            log.warning("%s could not be removed: %s", folder, error)
