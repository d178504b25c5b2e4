"""Import a snapshot from a file that another machine has exported (`squib.core.snapshots.exporting`).

The file may be hostile. Its manifest may only say what a request could ask for too, each file is stored under a name
that this module chooses, and nothing is listed before all digests are checked. Only the guest and the VMM, in its jail,
read more of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from squib.artifacts.manifest import is_valid_digest
from squib.core import references
from squib.core.engine import Engine
from squib.core.lifecycle.create import new_id
from squib.core.snapshots import archive, catalog, saved
from squib.core.snapshots.archive import ArchiveReader, Extent, Member, refuse
from squib.core.snapshots.catalog import Snapshot, SnapshotManifest
from squib.core.snapshots.exporting import FORMAT, MANIFEST, CachedFiles, ExportManifest
from squib.errors import HostError, ImageCorrupt, NotFound, SquibError
from squib.host import files
from squib.images.store import ImageStore
from squib.kernels.catalog import KernelStore
from squib.models import CachedRef, VMConfig, check_name
from squib.paths import SavedPaths
from squib.store.records import VMSpec
from squib.undo import Undo, in_thread

_MAX_MANIFEST_BYTES = 8 << 20
_MAX_KERNEL_FILES = 200
_MAX_KERNEL_BYTES = 256 << 20
_MAX_IMAGE_BYTES = 1 << 40
_MAX_DEVICES_BYTES = 256 << 20
_MAX_TEXT = 64 << 10

_KERNEL_FILE = re.compile(r"vmlinux|bzImage|config|modules/(modules\.builtin|[A-Za-z0-9_]+\.ko)")
_IMAGE_FILES = ("rootfs.squashfs",)
_KERNEL_INFO = {"version": re.compile(r"[0-9][A-Za-z0-9_.+~-]{0,62}")}
_MODULES = re.compile(r"[A-Za-z0-9_]*( [A-Za-z0-9_]+)*")
_INFO_KEY = re.compile(r"([a-z]+_)?modules")
_CONFIG_FIELDS = (
    "project", "runtime", "vcpu_count", "mem_size_mib", "disk_size_mib", "boot_args", "nested", "env_vars", "cwd",
    "user",
)  # fmt: skip


@dataclass(frozen=True)
class _Asset:
    """The kernel or the image of a snapshot that is being imported. ``folder`` is ``None`` if the cache has it."""

    store: KernelStore | ImageStore
    digest: str
    files: CachedFiles
    folder: Path | None

    def publish(self) -> None:
        if self.folder is None:
            self.store.content(self.digest)  # it may have been removed meanwhile
            return
        try:
            self.store.add(self.digest, self.folder, dict(self.files.info))
        except ImageCorrupt as error:
            refuse(error.message)
        files.remove_tree(self.folder)


class ReceivedSnapshot:
    """A snapshot whose files were received, but not checked yet."""

    def __init__(self, engine: Engine, paths: SavedPaths, manifest: SnapshotManifest, assets: list[_Asset]) -> None:
        self._engine = engine
        self._paths = paths
        self._manifest = manifest
        self._assets = assets

    async def publish(self) -> Snapshot:
        """Check all digests, and make it a snapshot of this machine.

        Raises `InvalidArgument` if a file is not what the manifest says, `NameTaken`, `DiskFull`, `HostError`, and
        `NotFound` if its kernel or image was removed from the cache meanwhile.
        """
        with Undo(lambda: references.prune(self._engine)), references.choosing(self._engine), _host_errors(self._paths):
            await in_thread(self._check)
            return await catalog.publish(self._engine.home, self._paths, self._manifest)

    def _check(self) -> None:
        for name, digest in saved.flush(self._paths).items():
            if digest != self._manifest.digests[name]:
                refuse(f"{name} is damaged: its digest is {digest}, not {self._manifest.digests[name]}")
        for asset in self._assets:
            asset.publish()


@contextlib.asynccontextmanager
async def receiving(
    engine: Engine, body: AsyncIterator[bytes], *, name: str | None = None
) -> AsyncIterator[ReceivedSnapshot]:
    """Receive an exported snapshot into a directory of its own, which is removed at the end unless it was published.

    It gets a new ID, and ``name``; by default the name that it had. A kernel or an image that the cache has already is
    not stored again.

    Raises `InvalidArgument` if the file is not an exported snapshot, is damaged or truncated; `NameTaken`, `DiskFull`,
    `HostError`.
    """
    reader = ArchiveReader(body)
    manifest = await _read_manifest(reader)
    snapshot_id = new_id("snap")
    old = manifest.snapshot
    name = name or (old.name if old.name != old.snapshot_id else snapshot_id)
    catalog.check_free(engine.home, snapshot_id, name)
    own = old.model_copy(update={"snapshot_id": snapshot_id, "name": name})
    async with catalog.filling(engine.home) as paths:
        with _host_errors(paths):
            assets = await in_thread(_assets, engine, manifest, paths)
            for member_name, target, limit in _expected(own, assets, paths):
                member = await reader.next_member()
                if member is None or member.name != member_name:
                    found = repr(member.name[:100]) if member else "its end"
                    refuse(f"{member_name} was expected, not {found}")
                if member.size > limit:
                    refuse(f"{member_name} has {member.size} bytes; the limit is {limit}")
                if "/" in member_name and member.data_bytes != member.size:
                    refuse(f"{member_name} has holes")  # it is hashed as a whole, and may be large
                await _receive(reader, member, target)
        if (extra := await reader.next_member()) is not None:
            refuse(f"{extra.name[:100]!r} was not expected")
        await reader.finish()
        yield ReceivedSnapshot(engine, paths, own, assets)


@contextlib.contextmanager
def _host_errors(paths: SavedPaths) -> Iterator[None]:
    try:
        with files.disk_errors(paths.root):
            yield
    except SquibError:
        raise
    except OSError as error:
        raise HostError(f"the snapshot cannot be stored: {error}", hint="squib doctor") from error


def _assets(engine: Engine, manifest: ExportManifest, paths: SavedPaths) -> list[_Asset]:
    spec = manifest.snapshot.spec
    found = []
    for store, ref, cached, name in (
        (engine.kernels, spec.kernel, manifest.kernel, "kernel"),
        (engine.images, spec.rootfs, manifest.image, "image"),
    ):
        assert isinstance(ref, CachedRef)  # it was checked
        folder: Path | None = None
        try:
            store.content(ref.digest)
        except (NotFound, ImageCorrupt):
            folder = paths.root / name
            for path in cached.files:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
        found.append(_Asset(store, ref.digest, cached, folder))
    return found


def _expected(
    manifest: SnapshotManifest, assets: list[_Asset], paths: SavedPaths
) -> Iterator[tuple[str, Path | None, int]]:
    """Yield the members that follow the manifest: name, where to store it if anywhere, and its largest size."""
    for asset, name, limit in zip(assets, ("kernel", "image"), (_MAX_KERNEL_BYTES, _MAX_IMAGE_BYTES), strict=True):
        for path in asset.files.files:
            yield f"{name}/{path}", asset.folder and asset.folder / path, limit
    if manifest.machine:
        yield paths.memory.name, paths.memory, manifest.spec.mem_size_mib << 20
        yield paths.devices.name, paths.devices, _MAX_DEVICES_BYTES
    yield paths.overlay.name, paths.overlay, manifest.spec.disk_size_mib << 20


async def _receive(reader: ArchiveReader, member: Member, target: Path | None) -> None:
    """Read a member's data and, with a ``target``, store it in this new file."""
    if target is None:
        for batch in archive.batches(member.extents):
            await reader.read(_bytes_in(batch))
    else:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            files.check_room(fd, member.data_bytes)
            os.ftruncate(fd, member.size)
            for batch in archive.batches(member.extents):
                await in_thread(_write, fd, batch, await reader.read(_bytes_in(batch)))
        finally:
            os.close(fd)
    await reader.read(archive.padding(member.data_bytes))


def _bytes_in(batch: list[Extent]) -> int:
    return sum(length for _, length in batch)


def _write(fd: int, batch: list[Extent], data: bytes) -> None:
    view = memoryview(data)
    for offset, length in batch:
        part, view = view[:length], view[length:]
        while part:
            written = os.pwrite(fd, part, offset)
            part, offset = part[written:], offset + written


async def _read_manifest(reader: ArchiveReader) -> ExportManifest:
    member = await reader.next_member()
    if member is None or member.name != MANIFEST:
        refuse(f"it does not begin with {MANIFEST}")
    if member.data_bytes != member.size or member.size > _MAX_MANIFEST_BYTES:
        refuse(f"its {MANIFEST} has {member.size} bytes")
    text = await reader.read(member.size)
    await reader.read(archive.padding(member.size))
    return await in_thread(_parsed, text)


def _parsed(text: bytes) -> ExportManifest:
    try:
        fields = json.loads(text)
        found = fields.get("format") if isinstance(fields, dict) else "unknown"
        if found != FORMAT:
            raise ValueError(f"its format is {str(found)[:20]}, and this squib reads format {FORMAT}")
        manifest = ExportManifest.model_validate(fields)
        _check_snapshot(manifest.snapshot)
        _check_kernel(manifest.kernel)
        if manifest.image.files != _IMAGE_FILES or manifest.image.info:
            raise ValueError(f"an image has the file {_IMAGE_FILES[0]} and no more")
    except ValidationError as error:
        first = error.errors()[0]
        refuse(f"its {MANIFEST} is invalid: {'.'.join(map(str, first['loc']))[:100]}: {first['msg'][:200]}")
    except (ValueError, RecursionError) as error:
        refuse(f"its {MANIFEST} is invalid: {str(error)[:200]}")
    return manifest


def _check_snapshot(manifest: SnapshotManifest) -> None:
    """Check that a manifest only says what a snapshot of this machine could say too. Raises `ValueError`."""
    spec = manifest.spec
    for name in (manifest.snapshot_id, manifest.name, manifest.vm_name, manifest.driver, manifest.accelerator):
        check_name(name)
    kind, slash, vm_id = manifest.parent.partition("/")
    if (kind, slash) != ("vm", "/") or not check_name(vm_id):
        raise ValueError("parent is not a VM")
    _check_spec(spec)
    wanted = {"overlay.ext4"}
    if machine := manifest.machine:
        wanted |= {"memory", "devices"}
        if machine.mem_size_mib != spec.mem_size_mib:
            raise ValueError("machine.mem_size_mib is not the VM's")
        for key, value in machine.fingerprint.items():
            _check_text(key)
            _check_text(value)
    if manifest.digests.keys() != wanted:
        raise ValueError(f"digests has {len(manifest.digests)} files, not {', '.join(sorted(wanted))}")
    _check_text(manifest.squib_version)
    if manifest.created_at.tzinfo is None or not 2000 <= manifest.created_at.year < 3000:
        raise ValueError("created_at is not a time with a time zone")


def _check_spec(spec: VMSpec) -> None:
    for ref in (spec.kernel, spec.rootfs):
        if not isinstance(ref, CachedRef) or not is_valid_digest(ref.digest):
            raise ValueError(f"{str(ref)[:100]} is not the digest of a kernel or an image")
    given = {name: value for name in _CONFIG_FIELDS if (value := getattr(spec, name)) is not None}
    VMConfig(**given)


def _check_text(text: str) -> None:
    if len(text.encode()) > _MAX_TEXT:  # a lone surrogate is a ValueError too
        raise ValueError("a text is too long")


def _check_kernel(kernel: CachedFiles) -> None:
    """Check that a kernel has the files of one of squib's, so that no other code ever reads an unexpected one."""
    names = set(kernel.files)
    unknown = [name for name in names if not _KERNEL_FILE.fullmatch(name)]
    if unknown or len(names) != len(kernel.files) or len(names) > _MAX_KERNEL_FILES:
        raise ValueError(f"kernel.files has {len(kernel.files)} files; {', '.join(unknown)[:100]} is not a kernel's")
    if not {"vmlinux", "bzImage", "config"} <= names or not {"version", "modules"} <= kernel.info.keys():
        raise ValueError("the kernel is not complete")
    for key, value in kernel.info.items():
        pattern = _KERNEL_INFO.get(key) or (_MODULES if _INFO_KEY.fullmatch(key) else None)
        if len(value) > _MAX_TEXT or pattern is None or not pattern.fullmatch(value):
            raise ValueError(f"kernel.info.{key[:50]} is invalid")
