"""A content-addressed cache of things that were built: each has a name, a recipe that it was made from, and files.

::

    <root>/names/<name>.json         the digest of the content that the name stands for, and the recipe it was made from
    <root>/sha256-<hex>/…            the files, 0444
    <root>/sha256-<hex>/<kind>.json  the digest and the stamp of each file

The content of one file has that file's digest; that of several, the digest of their list as ``sha256sum`` prints it.
A *stamp* (inode, size, modification time) tells cheaply that a file was not touched since it was hashed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from squib.artifacts.building import Build, building, no_progress
from squib.errors import ImageCorrupt, InvalidArgument, NotFound
from squib.host import files
from squib.host.locks import FileLock
from squib.models import OnProgress, Progress, StoredModel, check_name
from squib.paths import Home


class Stamp(StoredModel):
    """What changes when a file is written to or replaced."""

    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        found = path.stat()
        return cls(inode=found.st_ino, size=found.st_size, mtime_ns=found.st_mtime_ns)


class StoredFile(StoredModel):
    """A file of an artifact. ``path`` is relative to the artifact's directory."""

    path: str
    digest: str
    stamp: Stamp


class Manifest(StoredModel):
    """What a directory of the cache holds. ``info`` is the maker's: plain facts about the content."""

    info: dict[str, str]
    built_at: datetime
    files: tuple[StoredFile, ...]

    @property
    def digest(self) -> str:
        if len(self.files) == 1:
            return self.files[0].digest
        lines = "".join(f"{file.digest.removeprefix('sha256:')}  {file.path}\n" for file in self.files)
        return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


class Pointer(StoredModel):
    """What a name stands for."""

    digest: str
    recipe: str
    built_at: datetime


@dataclass(frozen=True)
class Artifact:
    """Content in the cache. ``name`` is the digest again for content that no name stands for any more."""

    name: str
    digest: str
    built_at: datetime
    folder: Path
    manifest: Manifest

    @property
    def info(self) -> dict[str, str]:
        return self.manifest.info

    @property
    def size_bytes(self) -> int:
        return sum(file.stamp.size for file in self.manifest.files)


Maker = Callable[[Build, Path], Awaitable[dict[str, str]]]
"""Writes the files of an artifact into a directory, which is empty, and returns its ``info``."""


class ArtifactCache:
    """All artifacts of one kind (``image``, ``kernel``). Safe to use from several processes.

    ``build_hint`` and ``repair_hint`` are the commands for one that is absent or damaged, with ``{name}`` in them.
    """

    def __init__(self, home: Home, kind: str, root: Path, *, build_hint: str, repair_hint: str) -> None:
        self._home = home
        self._kind = kind
        self._root = root
        self._build_hint = build_hint
        self._repair_hint = repair_hint
        self._names = root / "names"

    def list(self) -> list[Artifact]:
        """Every artifact that has a name and can be read, in the order of the names. The files are not looked at."""
        found = []
        for name in self._all_names():
            with contextlib.suppress(NotFound, ImageCorrupt):
                found.append(self._find(name))
        return found

    def get(self, ref: str) -> Artifact:
        """The artifact with this name or digest, its files unchanged as their stamps say.

        A file with another stamp is hashed, and the stamp renewed if the content is the same. Raises `NotFound`,
        `ImageCorrupt`.
        """
        artifact = self._find(ref)
        changed = [file for file in artifact.manifest.files if _stamp(artifact.folder / file.path) != file.stamp]
        return self._rehash(artifact, changed) if changed else artifact

    def verify(self, ref: str) -> Artifact:
        """As `get`, but hashes every file."""
        artifact = self._find(ref)
        return self._rehash(artifact, artifact.manifest.files)

    async def ensure(
        self, name: str, recipe: str, make: Maker, on_progress: OnProgress = no_progress, *, rebuild: bool = False
    ) -> Artifact:
        """The artifact ``name``, made if it is absent or was made from another recipe; with ``rebuild``, made again.

        What the name stood for before stays, under its digest, until `prune`. If another process is at it, waits and
        takes its result. Raises `ImageCorrupt` for one that is there and damaged (but not with ``rebuild``), and what
        ``make`` raises; a failed build leaves nothing.
        """
        asked_at = datetime.now(UTC)

        def usable() -> Artifact | None:
            pointer = self._pointer(name)
            if pointer is None or pointer.recipe != recipe or (rebuild and pointer.built_at < asked_at):
                return None
            return self.get(name)

        _check_name(name)
        if (artifact := usable()) is not None:
            return artifact
        async with building(self._home, f"{self._kind}-{name}", on_progress) as build:
            if (artifact := usable()) is None:
                content = build.folder / "content"
                content.mkdir()
                info = await make(build, content)
                on_progress(Progress(step="digest"))
                await asyncio.to_thread(self._take_in, name, recipe, content, info)
                artifact = self._find(name)
        return artifact

    def remove(self, name: str) -> None:
        """Forget the name, and remove its content unless another name stands for it. Raises `NotFound`."""
        with self._index():
            pointer = self._named(name)
            self._pointer_path(name).unlink()
            if pointer.digest not in self._named_digests():
                self._discard(self._folder(pointer.digest))

    def prune(self, *, keep: Collection[str] = ()) -> None:
        """Remove every content that no name stands for, but those whose digest is in ``keep``."""
        with self._index():
            wanted = {self._folder(digest) for digest in {*self._named_digests(), *keep}}
            for folder in set(self._root.glob("sha256-*")) - wanted:
                self._discard(folder)

    def _take_in(self, name: str, recipe: str, content: Path, info: dict[str, str]) -> None:
        manifest = _seal(content, info)
        (content / self._manifest_name).write_text(manifest.model_dump_json())
        target = self._folder(manifest.digest)
        with self._index():
            if not self._is_whole(target, manifest):
                self._discard(target)
                content.rename(target)
            pointer = Pointer(digest=manifest.digest, recipe=recipe, built_at=manifest.built_at)
            files.write_atomic(self._pointer_path(name), pointer.model_dump_json().encode())

    def _is_whole(self, folder: Path, manifest: Manifest) -> bool:
        try:
            stored = self._manifest(folder, manifest.digest)
        except ImageCorrupt:
            return False
        same = (stored.digest, stored.info) == (manifest.digest, manifest.info)
        return same and all(_digest(folder / file.path) == file.digest for file in manifest.files)

    def _discard(self, folder: Path) -> None:
        """Remove a content, if it is there, in one step for whoever looks. After a kill, `building.sweep` goes on."""
        if not folder.exists():
            return
        self._home.building.mkdir(exist_ok=True)
        doomed = self._home.building / f"{self._kind}-removed.{folder.name}"
        files.remove_tree(doomed)
        folder.rename(doomed)
        files.remove_tree(doomed)

    @contextlib.contextmanager
    def _index(self) -> Iterator[None]:
        """Be the only one who changes which contents there are and what the names stand for."""
        self._names.mkdir(parents=True, exist_ok=True)
        with FileLock(self._names / ".lock") as lock:
            lock.acquire()
            yield

    def _find(self, ref: str) -> Artifact:
        if ref.startswith("sha256:"):
            folder = self._folder(_check_digest(ref))
            manifest = self._manifest(folder, ref) if folder.exists() else None
            if manifest is None:
                raise NotFound(f"no {self._kind} with the digest {ref}", hint=f"squib {self._kind} ls")
            return Artifact(ref, ref, manifest.built_at, folder, manifest)
        pointer = self._named(ref)
        folder = self._folder(pointer.digest)
        return Artifact(ref, pointer.digest, pointer.built_at, folder, self._manifest(folder, ref))

    def _named(self, name: str) -> Pointer:
        pointer = self._pointer(_check_name(name))
        if pointer is None:
            hint = self._build_hint.format(name=name)
            raise NotFound(f"no {self._kind} named {name} is in the cache", hint=hint)
        return pointer

    def _manifest(self, folder: Path, ref: str) -> Manifest:
        path = folder / self._manifest_name
        try:
            return Manifest.model_validate_json(path.read_bytes())
        except (FileNotFoundError, ValidationError):
            raise self._corrupt(ref, f"{path} is missing or cannot be read") from None

    def _pointer(self, name: str) -> Pointer | None:
        """What the name stands for; ``None`` if that is not known, or cannot be read: it can be built again."""
        try:
            return Pointer.model_validate_json(self._pointer_path(name).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def _rehash(self, artifact: Artifact, doubtful: Iterable[StoredFile]) -> Artifact:
        """Hash files again; return the artifact with their present stamps. Raises `ImageCorrupt`."""
        renewed = {}
        for file in doubtful:
            path = artifact.folder / file.path
            stamp = _stamp(path)
            if stamp is None:
                raise self._corrupt(artifact.name, f"{path} is missing")
            if (found := _digest(path)) != file.digest:
                raise self._corrupt(artifact.name, f"{path} is {found}, not {file.digest}")
            renewed[file.path] = file.model_copy(update={"stamp": stamp})
        present = tuple(renewed.get(file.path, file) for file in artifact.manifest.files)
        manifest = artifact.manifest.model_copy(update={"files": present})
        if manifest != artifact.manifest:
            files.write_atomic(artifact.folder / self._manifest_name, manifest.model_dump_json().encode())
        return Artifact(artifact.name, artifact.digest, artifact.built_at, artifact.folder, manifest)

    def _corrupt(self, ref: str, what: str) -> ImageCorrupt:
        names = [name for name in self._all_names() if (found := self._pointer(name)) and ref in (name, found.digest)]
        hint = "; ".join(self._repair_hint.format(name=name) for name in names)
        if ref.startswith("sha256:"):
            hint = "; ".join(part for part in ("VMs that were made from it cannot start any more", hint) if part)
        return ImageCorrupt(f"{self._kind} {ref} is damaged: {what}", hint=hint)

    def _all_names(self) -> Iterable[str]:
        return sorted(path.stem for path in self._names.glob("*.json")) if self._names.exists() else []

    def _named_digests(self) -> set[str]:
        return {pointer.digest for name in self._all_names() if (pointer := self._pointer(name))}

    def _pointer_path(self, name: str) -> Path:
        return self._names / f"{name}.json"

    def _folder(self, digest: str) -> Path:
        return self._root / digest.replace(":", "-")

    @property
    def _manifest_name(self) -> str:
        return f"{self._kind}.json"


def _seal(content: Path, info: dict[str, str]) -> Manifest:
    """Make all files below ``content`` read-only and durable, and list them."""
    found = []
    for path in sorted(path for path in content.rglob("*") if path.is_file()):
        path.chmod(0o444)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        found.append(StoredFile(path=str(path.relative_to(content)), digest=files.sha256(path), stamp=Stamp.of(path)))
    return Manifest(info=info, built_at=datetime.now(UTC), files=tuple(found))


def _stamp(path: Path) -> Stamp | None:
    try:
        return Stamp.of(path)
    except FileNotFoundError:
        return None


def _digest(path: Path) -> str | None:
    try:
        return files.sha256(path)
    except FileNotFoundError:
        return None


def _check_name(name: str) -> str:
    try:
        return check_name(name)
    except ValueError as error:
        raise InvalidArgument(str(error)) from None


def _check_digest(digest: str) -> str:
    value = digest.removeprefix("sha256:")
    if len(value) != 64 or not set(value) <= set("0123456789abcdef"):
        raise InvalidArgument(f"{digest!r} is not a digest: sha256: and 64 hex digits")
    return digest
