"""Copy files and directories to and from a guest. `AsyncFiles.upload` documents the rules."""

from __future__ import annotations

import os
import posixpath
import secrets
import shutil
import stat
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from squib.errors import InvalidArgument, IsADirectory, NoSuchFile, NotADirectory, NotAFile, TransferFailed
from squib.host.files import open_regular
from squib.models import FileInfo, FileType, OnProgress, Progress
from squib.protocol.guestfiles import GuestPath, check_path
from squib.sdk.fileclient import FileClient
from squib.sdk.result import CopyResult
from squib.sdk.transfer.chunks import CHUNK_BYTES, ThreadReader, blocking, in_thread, reading
from squib.sdk.transfer.localfiles import CHECK_ROOM_EVERY, check_room, escaped, local_errors, write_sparse
from squib.sdk.transfer.pack import Packing, measure, read_xattrs
from squib.sdk.transfer.repack import repacked
from squib.sdk.transfer.unpack import unpack

LocalPath = str | os.PathLike[str]

_WRITE_BYTES = 1 << 20
_NAMELESS = ("", ".", "..")
_PERMISSIONS = 0o777


@dataclass
class _Counter:
    """Report how many bytes of ``step`` are copied."""

    on_progress: OnProgress | None
    step: str
    total: int | None = None
    done: int = 0

    def add(self, size: int) -> None:
        self.reach(self.done + size)

    def reach(self, done: int) -> None:
        self.done = done
        if self.on_progress:
            self.on_progress(Progress(step=self.step, done=self.done, total=self.total, unit="bytes"))


@dataclass(frozen=True)
class _Named:
    """A source path and its name in a target directory. The name is empty if only the contents are copied."""

    path: str
    name: str

    @classmethod
    def of(cls, path: str) -> _Named:
        name = posixpath.basename(path.rstrip("/"))
        return cls(path, "" if name in _NAMELESS else name)

    def within(self, directory: str) -> str:
        return posixpath.join(directory, self.name) if self.name else directory


def _targets(sources: Sequence[_Named], target: str, is_directory: bool) -> Iterator[tuple[_Named, str]]:
    """Yield each source with its target path."""
    if not sources:
        raise InvalidArgument("nothing to copy: no source given")
    if len(sources) > 1 and not is_directory:
        raise NotADirectory(
            f"{escaped(target)} is not a directory: several sources need a directory as target",
            hint="create the directory first",
        )
    for source in sources:
        yield source, source.within(target) if is_directory else target


def _refuse_slash(source: _Named, target: str, place: str) -> None:
    """Raise `NotADirectory` if a file is copied to a missing directory, such as ``new/``."""
    if place == target and target.endswith("/"):
        raise NotADirectory(
            f"cannot copy the file {escaped(source.path)} to {escaped(target)}: the directory does not exist",
            hint="create the directory first",
        )


# --- to a guest ----------------------------------------------------------------------------------------------------


async def upload(
    client: FileClient,
    source: LocalPath | Sequence[LocalPath],
    target: GuestPath,
    *,
    owner: str | None,
    mode: int | None,
    keep_owner: bool,
    parents: bool,
    on_progress: OnProgress | None,
) -> CopyResult:
    """See `AsyncFiles.upload`."""
    if owner is not None and keep_owner:
        raise InvalidArgument("owner and keep_owner cannot be used together")
    sources = [source] if isinstance(source, str | os.PathLike) else list(source)
    named = [_Named.of(os.fspath(path)) for path in sources]
    kinds = {each.path: await blocking(_look, each.path) for each in named}
    place_of_all = check_path(target)
    there = await _stat_or_none(client, place_of_all)
    copied = CopyResult()
    for each, place in _targets(named, place_of_all, there is not None and there.type is FileType.DIRECTORY):
        status = kinds[each.path]
        counter = _Counter(on_progress, each.path)
        if stat.S_ISDIR(status.st_mode):
            copied += await _upload_tree(client, each, place, owner, keep_owner, parents, counter)
        else:
            _refuse_slash(each, place_of_all, place)
            if keep_owner and place != "/" and await blocking(_has_xattrs, each.path):
                copied += await _upload_with_xattrs(client, each, place, mode, parents, counter)
                continue
            owned = f"{status.st_uid}:{status.st_gid}" if keep_owner else owner
            copied += await _upload_file(client, each, place, owned, mode, parents, counter)
    return copied


def _look(path: str) -> os.stat_result:
    with local_errors(path):
        status = os.stat(path)  # noqa: PTH116
    if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
        raise NotAFile(f"{escaped(path)} on this machine is neither a file nor a directory")
    return status


async def _stat_or_none(client: FileClient, path: str) -> FileInfo | None:
    try:
        return await client.stat(path)
    except NoSuchFile:
        return None


async def _upload_file(
    client: FileClient,
    source: _Named,
    place: str,
    owner: str | None,
    mode: int | None,
    parents: bool,
    counter: _Counter,
) -> CopyResult:
    def start() -> tuple[BinaryIO, os.stat_result]:
        with local_errors(source.path):
            file = open_regular(Path(source.path))
            return file, os.fstat(file.fileno())

    file, status = await blocking(start)
    with file:
        counter.total = status.st_size
        mode = stat.S_IMODE(status.st_mode) if mode is None else mode
        chunks = _counted(in_thread(_read(file, source.path)), counter.add)
        info = await client.write(place, chunks, mode=mode, owner=owner, parents=parents, mtime_ns=status.st_mtime_ns)
    return CopyResult(1, info.size)


def _has_xattrs(path: str) -> bool:
    with local_errors(path):
        return bool(read_xattrs(path))


async def _upload_with_xattrs(
    client: FileClient, source: _Named, place: str, mode: int | None, parents: bool, counter: _Counter
) -> CopyResult:
    """Upload a file as an archive, which keeps its owner and extended attributes."""

    def start() -> tuple[BinaryIO, os.stat_result]:
        with local_errors(source.path):
            file = open_regular(Path(source.path))
            return file, os.fstat(file.fileno())

    there = await _stat_or_none(client, place)
    if there is not None and there.type is not FileType.FILE:
        raise NotAFile(f"{escaped(place)} is a {there.type}, not a regular file")
    directory, name = posixpath.split(place)
    directory = directory or "."
    if parents and there is None:
        await client.mkdir(directory, parents=True, mode=None, owner=None)
    file, status = await blocking(start)
    with file:
        counter.total = status.st_size
        packing = Packing(source.path, xattrs=True)
        kept = stat.S_IMODE(status.st_mode) if mode is None else mode
        chunks = _counted(
            in_thread(packing.file_chunks(file.fileno(), name, kept)), lambda _: counter.reach(packing.bytes)
        )
        await client.write_tar(directory, chunks, owner=None, keep_owner=True, create=False)
    return CopyResult(packing.entries, packing.bytes)


def _read(file: BinaryIO, path: str) -> Iterator[bytes]:
    with local_errors(path):
        while data := os.read(file.fileno(), CHUNK_BYTES):
            yield data


async def _upload_tree(
    client: FileClient,
    source: _Named,
    place: str,
    owner: str | None,
    keep_owner: bool,
    parents: bool,
    counter: _Counter,
) -> CopyResult:
    create = await _is_new_directory(client, source, place)
    if counter.on_progress:
        counter.total = await blocking(measure, source.path)
    packing = Packing(source.path, xattrs=keep_owner)
    chunks = _counted(in_thread(packing.chunks()), lambda size: counter.reach(packing.bytes))
    await client.write_tar(place, chunks, owner=owner, keep_owner=keep_owner, create=create, parents=parents and create)
    return CopyResult(packing.entries, packing.bytes, tuple(packing.left_out))


async def _is_new_directory(client: FileClient, source: _Named, place: str) -> bool:
    there = await _stat_or_none(client, place)
    if there and there.type is not FileType.DIRECTORY:
        raise NotADirectory(
            f"cannot copy the directory {escaped(source.path)} to {escaped(place)}: the target is a {there.type}"
        )
    return there is None


async def _counted(chunks: AsyncGenerator[bytes, None], count: Callable[[int], None]) -> AsyncGenerator[bytes, None]:
    """Yield ``chunks``. Call ``count`` with 0 first, then with the size of each consumed chunk."""
    async with aclosing(chunks):
        count(0)
        async for chunk in chunks:
            yield chunk
            count(len(chunk))


# --- between guests ------------------------------------------------------------------------------------------------


async def relay(
    source: FileClient,
    paths: Sequence[GuestPath],
    destination: FileClient,
    target: GuestPath,
    *,
    owner: str | None,
    mode: int | None,
    keep_owner: bool,
    parents: bool = True,
    on_progress: OnProgress | None,
) -> CopyResult:
    """Copy files and directories from one VM to another through this process.

    The rules are those of `AsyncFiles.upload`, and what `squib.sdk.transfer.repack` says of archives: the destination
    must not trust the source.
    """
    if owner is not None and keep_owner:
        raise InvalidArgument("owner and keep_owner cannot be used together")
    named = [_Named.of(check_path(path)) for path in paths]
    place_of_all = check_path(target)
    infos = {each.path: await _stat_to_copy(source, each.path) for each in named}
    there = await _stat_or_none(destination, place_of_all)
    copied = CopyResult()
    for each, place in _targets(named, place_of_all, there is not None and there.type is FileType.DIRECTORY):
        info = infos[each.path]
        counter = _Counter(on_progress, each.path)
        if info.type is FileType.DIRECTORY:
            create = await _is_new_directory(destination, each, place)
            chunks = repacked(_counted(source.read_tar(f"{each.path.rstrip('/')}/.", xattrs=keep_owner), counter.add))
            copied += await destination.write_tar(
                place, chunks, owner=owner, keep_owner=keep_owner, create=create, parents=parents and create
            )
        else:
            _refuse_slash(each, place_of_all, place)
            counter.total = info.size
            owned = f"{info.uid}:{info.gid}" if keep_owner else owner
            kept = info.mode & _PERMISSIONS if mode is None else mode
            chunks = _counted(source.read(each.path), counter.add)
            written = await destination.write(
                place, chunks, mode=kept, owner=owned, parents=parents, mtime_ns=info.mtime_ns
            )
            copied += CopyResult(1, written.size)
    return copied


async def _stat_to_copy(client: FileClient, path: str) -> FileInfo:
    info = await client.stat(path)
    if info.type not in (FileType.FILE, FileType.DIRECTORY):
        raise NotAFile(f"{escaped(path)} is a {info.type}, neither a file nor a directory")
    return info


# --- from a guest --------------------------------------------------------------------------------------------------


async def download(
    client: FileClient,
    source: GuestPath | Sequence[GuestPath],
    target: LocalPath,
    *,
    keep_owner: bool,
    unsafe_links: bool,
    on_progress: OnProgress | None,
) -> CopyResult:
    """See `AsyncFiles.download`."""
    sources = [source] if isinstance(source, str | bytes | os.PathLike) else list(source)
    named = [_Named.of(check_path(path)) for path in sources]
    place_of_all = os.fspath(target)
    if not place_of_all:  # Path("") would be the current directory
        raise InvalidArgument("the target path is empty", hint="use '.' for the current directory")
    is_directory = await blocking(os.path.isdir, place_of_all)
    copied = CopyResult()
    infos = {each.path: await _stat_to_copy(client, each.path) for each in named}
    for each, place in _targets(named, place_of_all, is_directory):
        info = infos[each.path]
        counter = _Counter(on_progress, each.path)
        if info.type is FileType.DIRECTORY:
            copied += await _download_tree(client, each, Path(place), keep_owner, unsafe_links, counter)
        else:
            _refuse_slash(each, place_of_all, place)
            if keep_owner:
                copied += await _download_with_xattrs(client, each, Path(place), info, counter)
            else:
                copied += await _download_file(client, each, Path(place), info, counter)
    return copied


async def _download_file(
    client: FileClient, source: _Named, place: Path, info: FileInfo, counter: _Counter
) -> CopyResult:
    counter.total = info.size
    counter.add(0)
    file = await blocking(_NewFile, place, info)
    try:
        async with aclosing(client.read(source.path)) as chunks:
            gathered: list[bytes] = []
            size = 0
            async for chunk in chunks:
                gathered.append(chunk)
                size += len(chunk)
                if size >= _WRITE_BYTES:
                    await blocking(file.write, b"".join(gathered))
                    counter.add(size)
                    gathered, size = [], 0
            await blocking(file.finish, b"".join(gathered))
            counter.add(size)
    finally:
        await blocking(file.close)
    return CopyResult(1, counter.done)


class _NewFile:
    """A download in progress: written to a temporary file next to ``place``, and renamed by `finish`."""

    def __init__(self, place: Path, info: FileInfo) -> None:
        with local_errors(place):
            self._place = _resolve_file(place)
            self._temporary = _temporary_beside(self._place)
            self._fd = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._info = info
        self._written = self._checked = 0
        self._finished = False

    def write(self, data: bytes) -> None:
        with local_errors(self._place):
            if not self._written or self._written - self._checked >= CHECK_ROOM_EVERY:
                self._checked = self._written
                left = max(self._info.size - self._written, len(data))
                check_room(self._fd, left, escaped(self._info.name), self._place)
            write_sparse(self._fd, data)
            self._written += len(data)

    def finish(self, data: bytes) -> None:
        """Write the last data, set the attributes, and rename the file to its final name."""
        self.write(data)
        with local_errors(self._place):
            os.ftruncate(self._fd, self._written)
            os.fchmod(self._fd, self._info.mode & _PERMISSIONS)
            os.utime(self._fd, ns=(self._info.mtime_ns, self._info.mtime_ns))
            self._temporary.rename(self._place)
        self._finished = True

    def close(self) -> None:
        os.close(self._fd)
        if not self._finished:
            self._temporary.unlink(missing_ok=True)


def _resolve_file(place: Path) -> Path:
    """Follow a symbolic link, as cp does. Raises `NotAFile` for anything else than a file."""
    resolved = place.resolve()
    if resolved.exists() and not resolved.is_file():
        kind = IsADirectory if resolved.is_dir() else NotAFile
        raise kind(f"{escaped(place)} on this machine exists and is not a regular file")
    return resolved


async def _download_with_xattrs(
    client: FileClient, source: _Named, place: Path, info: FileInfo, counter: _Counter
) -> CopyResult:
    """Download a file as an archive, which keeps its owner and extended attributes."""
    counter.total = info.size
    async with aclosing(_counted(client.read_tar(source.path, xattrs=True), counter.add)) as chunks:

        def work(archive: ThreadReader) -> CopyResult:
            with local_errors(place):
                target = _resolve_file(place)
                temporary = _temporary_beside(target)
                temporary.mkdir(mode=0o700)
            try:
                copied = unpack(archive, temporary, keep_owner=True)
                unpacked = temporary / source.name
                if not unpacked.is_file() or unpacked.is_symlink():
                    raise TransferFailed(f"{escaped(source.path)} in the guest changed during the transfer")
                with local_errors(place):
                    unpacked.rename(target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            return copied

        return await reading(work, chunks)


async def _download_tree(
    client: FileClient, source: _Named, place: Path, keep_owner: bool, unsafe_links: bool, counter: _Counter
) -> CopyResult:
    async with aclosing(
        _counted(client.read_tar(f"{source.path.rstrip('/')}/.", xattrs=keep_owner), counter.add)
    ) as chunks:

        def work(archive: ThreadReader) -> CopyResult:
            with _directory(place) as (directory, is_new):
                return unpack(archive, directory, keep_owner=keep_owner, unsafe_links=unsafe_links, new_target=is_new)

        return await reading(work, chunks)


@contextmanager
def _directory(place: Path) -> Iterator[tuple[Path, bool]]:
    """Yield the directory to fill, and whether it is new. A new one is renamed to ``place`` on success."""
    if place.is_dir():
        yield place, False
        return
    with local_errors(place):
        if os.path.lexists(place):
            raise NotADirectory(f"{escaped(place)} on this machine exists and is not a directory")
        temporary = _temporary_beside(place.absolute())
        temporary.mkdir(mode=0o700)
    try:
        yield temporary, True
        with local_errors(place):
            temporary.rename(place)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _temporary_beside(place: Path) -> Path:
    return place.parent / f".squib-{secrets.token_hex(8)}"
