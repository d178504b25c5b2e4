"""Export a snapshot: one file with all that another machine needs to make VMs from it.

The file has, in this order: ``manifest.json``, the files of the kernel and of the image in ``kernel/`` and ``image/``,
and those of the snapshot: ``memory`` and ``devices`` if it has them, and ``overlay.ext4``. The initramfs is not there:
it is built from the kernel and the agent of the machine that runs the VM.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from squib.artifacts.cache import Artifact
from squib.core.engine import Engine
from squib.core.snapshots import archive, catalog
from squib.core.snapshots.archive import Extent, Member
from squib.core.snapshots.catalog import Snapshot, SnapshotManifest
from squib.errors import HostError, NotFound, Unsupported
from squib.host.files import OwnedFd
from squib.models import AssetRef, CachedRef, StoredModel
from squib.undo import in_thread

MANIFEST = "manifest.json"
FORMAT: Final = 1
"""The version of the file format. A file with another one is refused."""


class CachedFiles(StoredModel):
    """A kernel or an image in an exported snapshot: its files, and what the cache knows of them. Its digest is in the
    snapshot's spec.
    """

    info: dict[str, str]
    files: tuple[str, ...]


class ExportManifest(StoredModel):
    """The first member of an exported snapshot. It says what follows."""

    format: Literal[1] = FORMAT
    snapshot: SnapshotManifest
    kernel: CachedFiles
    image: CachedFiles

    def to_json(self) -> str:
        """Encode it. Unlike pydantic's JSON, this accepts lone surrogates, as in an environment."""
        snapshot = json.loads(self.snapshot.to_json())
        return json.dumps(self.model_dump(exclude={"snapshot"}) | {"snapshot": snapshot})


@dataclass(frozen=True)
class _Part:
    """A member of the archive, what precedes its data, and where the data is: an open file, or bytes."""

    head: bytes
    member: Member
    data: OwnedFd | bytes


class Export:
    """A snapshot that is being exported. All its files are open: it may be deleted meanwhile."""

    def __init__(self, snapshot: Snapshot, parts: Sequence[_Part]) -> None:
        self._name = snapshot.name
        self._parts = list(parts)
        self._length = len(archive.END) + sum(
            len(part.head) + part.member.data_bytes + archive.padding(part.member.data_bytes) for part in parts
        )

    @property
    def length(self) -> int:
        """The size of the archive in bytes."""
        return self._length

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the archive in pieces. Raises `HostError` if a file cannot be read."""
        for part in self._parts:
            yield part.head
            if isinstance(part.data, bytes):
                yield part.data
            else:
                for batch in archive.batches(part.member.extents):
                    yield await in_thread(self._read, part.data, batch, part.member.name)
            yield bytes(archive.padding(part.member.data_bytes))
        yield archive.END

    def close(self) -> None:
        """Close the files. Idempotent."""
        self._parts.clear()

    def _read(self, file: OwnedFd, batch: list[Extent], name: str) -> bytes:
        try:
            data = b"".join(os.pread(file.fileno(), length, offset) for offset, length in batch)
        except OSError as error:
            raise HostError(f"{name} of snapshot {self._name} cannot be read: {error.strerror}") from error
        if len(data) != sum(length for _, length in batch):
            raise HostError(f"{name} of snapshot {self._name} became shorter while it was read")
        return data


async def open_export(engine: Engine, ref: str) -> Export:
    """Open a snapshot for its export.

    Raises `NotFound`, `Unsupported` if its VM has a kernel or root filesystem of the user's, and `ImageCorrupt`.
    """
    snapshot = catalog.find(engine.home, ref)
    return await in_thread(_open, engine, snapshot)


def _open(engine: Engine, snapshot: Snapshot) -> Export:
    spec = snapshot.manifest.spec
    kernel = engine.kernels.content(_digest(snapshot, "kernel", spec.kernel))
    image = engine.images.content(_digest(snapshot, "root filesystem", spec.rootfs))
    manifest = ExportManifest(snapshot=snapshot.manifest, kernel=_described(kernel), image=_described(image))
    paths = snapshot.paths
    try:
        mtime = int(snapshot.manifest.created_at.timestamp())
        text = manifest.to_json().encode("ascii")
        member = archive.whole(MANIFEST, len(text))
        parts = [_Part(archive.head(member, mtime=mtime), member, text)]
        for folder, artifact in (("kernel", kernel), ("image", image)):
            for cached in artifact.manifest.files:
                file = _opened(artifact.folder / cached.path)
                member = archive.whole(f"{folder}/{cached.path}", os.fstat(file.fileno()).st_size)
                parts.append(_Part(archive.head(member, mtime=mtime), member, file))
        for path in (path for path in paths.files if path.name in snapshot.manifest.digests):
            file = _opened(path)
            member = archive.member_of(path.name, file.fileno())
            parts.append(_Part(archive.head(member, mtime=mtime), member, file))
    except FileNotFoundError as error:
        raise NotFound(f"snapshot {snapshot.name} was deleted before it was exported") from error
    except OSError as error:
        raise HostError(f"snapshot {snapshot.name} cannot be read: {error}") from error
    return Export(snapshot, parts)


def _digest(snapshot: Snapshot, what: str, ref: AssetRef) -> str:
    if isinstance(ref, CachedRef):
        return ref.digest
    raise Unsupported(
        f"snapshot {snapshot.name} cannot be exported: its {what} is the file {ref} of this host, not squib's own",
        hint="copy the VM's files instead: squib download",
    )


def _described(artifact: Artifact) -> CachedFiles:
    return CachedFiles(info=artifact.info, files=tuple(file.path for file in artifact.manifest.files))


def _opened(path: Path) -> OwnedFd:
    return OwnedFd(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
