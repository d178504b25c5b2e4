"""A content-addressed cache of built artifacts.

An artifact has a name, a recipe that it was built from, and files.

::

    <root>/names/<name>.json         a pointer: the digest of the name's content, and the recipe
    <root>/sha256-<hex>/…            a content: its files, 0444
    <root>/sha256-<hex>/<kind>.json  its manifest: the digest and the stamp of each file

A content's digest is computed from its manifest (`squib.artifacts.manifest.Manifest.digest`). Files, manifest and
directories are flushed to the disk before a pointer names them. Damage to one artifact does not affect the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from squib.artifacts import manifest as records
from squib.artifacts.building import Build, building, no_progress
from squib.artifacts.manifest import Manifest, Pointer, StoredFile, Unreadable
from squib.errors import DiskFull, ImageCorrupt, InvalidArgument, NotFound
from squib.host import files
from squib.host.locks import FileLock
from squib.models import OnProgress, Progress, check_name
from squib.paths import Home


@dataclass(frozen=True)
class Artifact:
    """A readable content of the cache.

    If no name points to it any more, ``name`` is the digest.
    """

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


@dataclass(frozen=True)
class Entry:
    """A line of the cache's listing.

    ``name`` is empty if no name points to the content any more, ``digest`` if the name's pointer is unreadable.
    ``damage`` says why the artifact cannot be used; it is empty if nothing is known to be wrong.
    """

    name: str
    digest: str
    size_bytes: int
    built_at: datetime
    info: dict[str, str]
    damage: str = ""


Maker = Callable[[Build, Path], Awaitable[dict[str, str]]]
"""Writes the files of an artifact into an empty directory and returns its ``info``."""


class ArtifactCache:
    """All artifacts of one kind (``image``, ``kernel``).

    Safe to use from several processes.

    ``build_hint`` is the command that builds an absent artifact, ``repair_hint`` the one that rebuilds a damaged one;
    both contain ``{name}``. A manifest whose ``info`` lacks one of ``info_keys`` is damaged.
    """

    def __init__(
        self,
        home: Home,
        kind: str,
        root: Path,
        *,
        build_hint: str,
        repair_hint: str,
        info_keys: Collection[str] = (),
    ) -> None:
        self._home = home
        self._kind = kind
        self._root = root
        self._build_hint = build_hint
        self._repair_hint = repair_hint
        self._info_keys = frozenset(info_keys)
        self._names = root / "names"

    def list(self) -> list[Entry]:
        """List named artifacts by name, then the others from old to new.

        Damaged ones are listed with the reason. Files are not hashed.
        """
        named = [self._describe_name(name) for name in self._all_names()]
        unnamed = self._digests() - {entry.digest for entry in named}
        others = [self._describe(digest, "", self.folder(digest)) for digest in unnamed]
        return named + sorted(others, key=lambda entry: (entry.built_at, entry.digest))

    def get(self, ref: str) -> Artifact:
        """Return the artifact with this name or digest.

        Its files must match their stamps.

        A file with another stamp is hashed; if its content is the same, the new stamp is stored.

        Raises `NotFound`, `ImageCorrupt`.
        """
        artifact = self._find(ref)
        changed = [
            file for file in artifact.manifest.files if records.stamp_of(artifact.folder / file.path) != file.stamp
        ]
        return self._rehash(artifact, changed) if changed else artifact

    def verify(self, ref: str) -> Artifact:
        """Return the artifact as `get` does, but hash every file."""
        artifact = self._find(ref)
        return self._rehash(artifact, artifact.manifest.files)

    def named_digests(self) -> set[str]:
        """Return the digests of all contents that have a name."""
        return {pointer.digest for name in self._all_names() if (pointer := self._pointer(name))}

    def folder(self, digest: str) -> Path:
        """Return the directory of a content."""
        return self._root / digest.replace(":", "-")

    async def ensure(
        self, name: str, recipe: str, make: Maker, on_progress: OnProgress = no_progress, *, rebuild: bool = False
    ) -> Artifact:
        """Return the artifact ``name``; build it if absent or outdated.

        An artifact of another recipe is outdated. With ``rebuild``, it is always built. The name's former content
        stays, under its digest, until `prune`. While another process builds the artifact, this call waits, then takes
        that result. A failed build leaves nothing.

        Raises `ImageCorrupt` if the artifact is damaged (not with ``rebuild``), and what ``make`` raises.
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
                await asyncio.to_thread(self._install, name, recipe, content, info)
                artifact = self._find(name)
        return artifact

    def remove(self, ref: str) -> None:
        """Remove the artifact with this name or digest, damaged or not.

        Only the name is removed if another name points to the same content, or if the pointer is unreadable.

        Raises `NotFound`.
        """
        with self._index():
            if records.is_digest(ref):
                digest, names = records.check_digest(ref), self._names_of(ref)
            else:
                pointer = self._pointer(_check_name(ref))
                digest, names = pointer.digest if pointer else "", (ref,)
            if not any(os.path.lexists(self._pointer_path(name)) for name in names) and digest not in self._digests():
                raise self._not_found(ref)
            for name in names:
                files.remove_tree(self._pointer_path(name))
            if digest and not self._names_of(digest):
                self._discard(self.folder(digest))

    def prune(self, *, keep: Collection[str] = ()) -> None:
        """Remove unnamed contents whose digests are not in ``keep``."""
        with self._index():
            wanted = {self.folder(digest) for digest in {*self.named_digests(), *keep}}
            for folder in set(self._root.glob("sha256-*")) - wanted:
                self._discard(folder)

    def add(self, digest: str, content: Path, info: dict[str, str]) -> None:
        """Store a content that was built elsewhere, under no name, and take its directory. One that is there stays.

        Its files are hashed. Raises `ImageCorrupt` if it is not the content with this digest.
        """
        manifest = records.seal(content, info)
        if manifest.digest != digest or not self._info_keys <= info.keys():
            raise ImageCorrupt(f"the {self._kind} is {manifest.digest}, not {digest}")
        files.write_atomic(content / self._manifest_name, manifest.model_dump_json().encode())
        with self._index():
            try:
                self.get(digest)
            except (NotFound, ImageCorrupt):
                self._discard(self.folder(digest))
                content.rename(self.folder(digest))
            files.sync(self._root)

    def _install(self, name: str, recipe: str, content: Path, info: dict[str, str]) -> None:
        manifest = records.seal(content, info)
        files.write_atomic(content / self._manifest_name, manifest.model_dump_json().encode())
        target = self.folder(manifest.digest)
        with self._index():
            if not self._is_whole(target, manifest):
                self._discard(target)
                content.rename(target)
            files.sync(self._root)
            pointer = Pointer(digest=manifest.digest, recipe=recipe, built_at=manifest.built_at)
            path = self._pointer_path(name)
            if path.is_dir():
                files.remove_tree(path)
            files.write_atomic(path, pointer.model_dump_json().encode())

    def _is_whole(self, folder: Path, manifest: Manifest) -> bool:
        try:
            stored = self._manifest(folder)
        except Unreadable:
            return False
        same = (stored.digest, stored.info) == (manifest.digest, manifest.info)
        return same and all(records.find_damage(folder, file) is None for file in manifest.files)

    def _discard(self, folder: Path) -> None:
        """Remove a content, if it exists, atomically for readers.

        After a kill, `building.sweep` removes the rest.
        """
        if not os.path.lexists(folder):
            return
        self._home.building.mkdir(exist_ok=True)
        removed = self._home.building / f"{self._kind}-removed.{folder.name}"
        files.remove_tree(removed)
        folder.rename(removed)
        files.remove_tree(removed)

    @contextlib.contextmanager
    def _index(self) -> Iterator[None]:
        """Hold the lock on contents and names."""
        self._names.mkdir(parents=True, exist_ok=True)
        with FileLock(self._names / ".lock") as lock:
            lock.acquire()
            yield

    def _find(self, ref: str) -> Artifact:
        """Return an artifact whose manifest is readable.

        Raises `NotFound`, `ImageCorrupt`.
        """
        try:
            if records.is_digest(ref):
                folder = self.folder(records.check_digest(ref))
                if not folder.exists():
                    raise self._not_found(ref)
                manifest = self._manifest(folder)
                return Artifact(ref, ref, manifest.built_at, folder, manifest)
            pointer = records.read(self._pointer_path(_check_name(ref)), Pointer)
            folder = self.folder(pointer.digest)
            return Artifact(ref, pointer.digest, pointer.built_at, folder, self._manifest(folder))
        except FileNotFoundError:
            raise self._not_found(ref) from None
        except Unreadable as error:
            raise self._corrupt(ref, str(error)) from error

    def _manifest(self, folder: Path) -> Manifest:
        """Read the manifest of a content. Raises `Unreadable`."""
        path = folder / self._manifest_name
        try:
            manifest = records.read(path, Manifest)
        except FileNotFoundError:
            raise Unreadable(f"{path} is missing") from None
        if self.folder(manifest.digest) != folder or not self._info_keys <= manifest.info.keys():
            raise Unreadable(f"{path} describes another content")
        return manifest

    def _pointer(self, name: str) -> Pointer | None:
        """Return a name's pointer, or ``None`` if absent or unreadable."""
        try:
            return records.read(self._pointer_path(name), Pointer)
        except (FileNotFoundError, Unreadable):
            return None

    def _describe_name(self, name: str) -> Entry:
        path = self._pointer_path(name)
        try:
            pointer = records.read(path, Pointer)
        except (FileNotFoundError, Unreadable) as error:
            return Entry(name, "", 0, _modified_at(path), {}, damage=str(error))
        return self._describe(pointer.digest, name, self.folder(pointer.digest))

    def _describe(self, digest: str, name: str, folder: Path) -> Entry:
        try:
            manifest = self._manifest(folder)
        except Unreadable as error:
            return Entry(name, digest, _size_of(folder), _modified_at(folder), {}, damage=str(error))
        damages = (records.visible_damage(folder, file) for file in manifest.files)
        damage = next((damage for damage in damages if damage), "")
        size = sum(file.stamp.size for file in manifest.files)
        return Entry(name, digest, size, manifest.built_at, manifest.info, damage)

    def _rehash(self, artifact: Artifact, doubtful: Iterable[StoredFile]) -> Artifact:
        """Hash files again; return the artifact with their present stamps.

        Raises `ImageCorrupt`.
        """
        renewed = {}
        for file in doubtful:
            path = artifact.folder / file.path
            stamp = records.stamp_of(path)
            damage = records.find_damage(artifact.folder, file)
            if damage is not None or stamp is None:
                raise self._corrupt(artifact.name, damage or f"{path} is missing")
            renewed[file.path] = file.model_copy(update={"stamp": stamp})
        present = tuple(renewed.get(file.path, file) for file in artifact.manifest.files)
        manifest = artifact.manifest.model_copy(update={"files": present})
        if manifest != artifact.manifest:
            with contextlib.suppress(OSError, DiskFull):  # then the next use hashes it again
                files.write_atomic(artifact.folder / self._manifest_name, manifest.model_dump_json().encode())
        return Artifact(artifact.name, artifact.digest, artifact.built_at, artifact.folder, manifest)

    def _not_found(self, ref: str) -> NotFound:
        if records.is_digest(ref):
            return NotFound(f"no {self._kind} with the digest {ref}", hint=f"squib {self._kind} ls")
        hint = self._build_hint.format(name=ref)
        return NotFound(f"no {self._kind} named {ref} is in the cache", hint=hint)

    def _corrupt(self, ref: str, reason: str) -> ImageCorrupt:
        names = self._names_of(ref) if records.is_digest(ref) else (ref,)
        hint = "; ".join(self._repair_hint.format(name=name) for name in names)
        effect = "; VMs made from it cannot start" if records.is_digest(ref) else ""
        return ImageCorrupt(f"{self._kind} {ref} is damaged: {reason}{effect}", hint=hint)

    def _all_names(self) -> tuple[str, ...]:
        return tuple(sorted(path.stem for path in self._names.glob("*.json") if _is_name(path.stem)))

    def _names_of(self, digest: str) -> tuple[str, ...]:
        pointers = {name: self._pointer(name) for name in self._all_names()}
        return tuple(name for name, pointer in pointers.items() if pointer and pointer.digest == digest)

    def _digests(self) -> set[str]:
        names = {path.name.replace("-", ":", 1) for path in self._root.glob("sha256-*")}
        return {name for name in names if records.is_valid_digest(name)}

    def _pointer_path(self, name: str) -> Path:
        return self._names / f"{name}.json"

    @property
    def _manifest_name(self) -> str:
        return f"{self._kind}.json"


def _size_of(folder: Path) -> int:
    return sum(path.lstat().st_size for path in (folder, *folder.rglob("*")) if path.is_file())


def _modified_at(path: Path) -> datetime:
    try:
        return datetime.fromtimestamp(path.lstat().st_mtime, UTC)
    except OSError:
        return datetime.fromtimestamp(0, UTC)


def _is_name(name: str) -> bool:
    try:
        return bool(check_name(name))
    except ValueError:
        return False


def _check_name(name: str) -> str:
    try:
        return check_name(name)
    except ValueError as error:
        raise InvalidArgument(str(error)) from None
