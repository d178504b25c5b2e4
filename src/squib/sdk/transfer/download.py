"""Copy files and directories from a guest to this machine.

`AsyncFiles.download` documents the rules.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path

from squib.errors import InvalidArgument, IsADirectory, NotADirectory, NotAFile, TransferFailed
from squib.models import FileInfo, FileType, OnProgress
from squib.protocol.guestfiles import GuestPath, check_path
from squib.sdk.fileclient import FileClient
from squib.sdk.result import CopyResult
from squib.sdk.transfer.chunks import ThreadReader, blocking, reading
from squib.sdk.transfer.localfiles import CHECK_ROOM_EVERY, check_room, escaped, local_errors, write_sparse
from squib.sdk.transfer.targets import (
    PERMISSIONS,
    Counter,
    LocalPath,
    Named,
    counted,
    refuse_slash,
    stat_to_copy,
    targets,
)
from squib.sdk.transfer.unpack import unpack
from squib.undo import Undo

_WRITE_BYTES = 1 << 20


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
    named = [Named.of(check_path(path)) for path in sources]
    place_of_all = os.fspath(target)
    if not place_of_all:  # Path("") would be the current directory
        raise InvalidArgument("the target path is empty", hint="use '.' for the current directory")
    is_directory = await blocking(os.path.isdir, place_of_all)
    copied = CopyResult()
    infos = {each.path: await stat_to_copy(client, each.path) for each in named}
    for each, place in targets(named, place_of_all, is_directory):
        info = infos[each.path]
        counter = Counter(on_progress, each.path)
        if info.type is FileType.DIRECTORY:
            copied += await _download_tree(client, each, Path(place), keep_owner, unsafe_links, counter)
        else:
            refuse_slash(each, place_of_all, place)
            if keep_owner:
                copied += await _download_with_xattrs(client, each, Path(place), info, counter)
            else:
                copied += await _download_file(client, each, Path(place), info, counter)
    return copied


async def _download_file(
    client: FileClient, source: Named, place: Path, info: FileInfo, counter: Counter
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
    """A download to a temporary file beside ``place``, renamed by `finish`."""

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
        """Write the last data, set the attributes, and rename the file."""
        self.write(data)
        with local_errors(self._place):
            os.ftruncate(self._fd, self._written)
            os.fchmod(self._fd, self._info.mode & PERMISSIONS)
            os.utime(self._fd, ns=(self._info.mtime_ns, self._info.mtime_ns))
            self._temporary.rename(self._place)
        self._finished = True

    def close(self) -> None:
        os.close(self._fd)
        if not self._finished:
            self._temporary.unlink(missing_ok=True)


def _resolve_file(place: Path) -> Path:
    """Follow a symbolic link, as cp does.

    Raises `NotAFile` for anything else than a file.
    """
    resolved = place.resolve()
    if resolved.exists() and not resolved.is_file():
        kind = IsADirectory if resolved.is_dir() else NotAFile
        raise kind(f"{escaped(place)} on this machine exists and is not a regular file")
    return resolved


async def _download_with_xattrs(
    client: FileClient, source: Named, place: Path, info: FileInfo, counter: Counter
) -> CopyResult:
    """Download a file as an archive, with owner and extended attributes."""
    counter.total = info.size
    async with aclosing(counted(client.read_tar(source.path, xattrs=True), counter.add)) as chunks:

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
    client: FileClient, source: Named, place: Path, keep_owner: bool, unsafe_links: bool, counter: Counter
) -> CopyResult:
    async with aclosing(
        counted(client.read_tar(f"{source.path.rstrip('/')}/.", xattrs=keep_owner), counter.add)
    ) as chunks:

        def work(archive: ThreadReader) -> CopyResult:
            with _directory(place) as (directory, is_new):
                return unpack(archive, directory, keep_owner=keep_owner, unsafe_links=unsafe_links, new_target=is_new)

        return await reading(work, chunks)


@contextmanager
def _directory(place: Path) -> Iterator[tuple[Path, bool]]:
    """Yield the directory to fill, and whether it is new.

    A new one is renamed to ``place`` on success.
    """
    if place.is_dir():
        yield place, False
        return
    with local_errors(place):
        if os.path.lexists(place):
            raise NotADirectory(f"{escaped(place)} on this machine exists and is not a directory")
        temporary = _temporary_beside(place.absolute())
        temporary.mkdir(mode=0o700)
    with Undo(lambda: shutil.rmtree(temporary, ignore_errors=True)):
        yield temporary, True
        with local_errors(place):
            temporary.rename(place)


def _temporary_beside(place: Path) -> Path:
    return place.parent / f".squib-{secrets.token_hex(8)}"
