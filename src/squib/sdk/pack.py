"""Packing files and directories of this machine for a guest: a PAX tar as a stream of chunks.

Each directory is opened relative to the one before it and each file relative to its directory, never through a symbolic
link that has come in its place meanwhile. The sources themselves may be links: somebody named them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from squib.errors import InvalidArgument, NotADirectory, TransferFailed
from squib.sdk.localfiles import escaped, local_errors
from squib.sdk.tar import BLOCK, CHUNK, MAX_DEPTH, OnCopied

CONTENTS = "."
"""As the name of a source: what is in that directory, without the directory."""

_END = bytes(2 * BLOCK)
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}

OnLeftOut = Callable[[str], None]
"""Is told of each file that is not sent: its path and why."""


@dataclass(frozen=True)
class Source:
    """A file or directory to pack, and its name in the archive (`CONTENTS`: none)."""

    path: Path
    name: str

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> Source:
        """``path`` under its last component. Raises `InvalidArgument` if that is none, as in ``/`` and ``..``."""
        name = Path(os.path.normpath(path)).name or Path(path).absolute().name
        if name in ("", ".."):
            raise InvalidArgument(
                f"{escaped(path)} has no name of its own", hint=f"copy what is in it: {escaped(path)}/."
            )
        return cls(Path(path), name)


@dataclass(frozen=True)
class Total:
    """How many entries an archive has, and how many bytes of files."""

    entries: int
    bytes: int


def measure(sources: Sequence[Source]) -> Total:
    """What `pack` would send, if nothing changes until then. Blocks. Raises as `pack` does."""
    entries = size = 0
    linked: set[tuple[int, int]] = set()
    for found in _walk(sources):
        entries += stat.S_IFMT(found.status.st_mode) in _TYPES
        if stat.S_ISREG(found.status.st_mode):
            identity = (found.status.st_dev, found.status.st_ino)
            if identity not in linked:
                size += found.status.st_size
            if found.status.st_nlink > 1:
                linked.add(identity)
    return Total(entries, size)


def pack(
    sources: Sequence[Source], *, on_left_out: OnLeftOut | None = None, on_progress: OnCopied | None = None
) -> Iterator[bytes]:
    """The archive of ``sources`` with all that is below them, in chunks of about 256 KiB. Blocks while it reads.

    It has permission bits with set-id, symbolic and hard links, FIFOs, times in nanoseconds, owners as numbers, and
    names byte for byte. Sockets and devices, and what vanishes before it is reached, are left out.

    Raises `NoSuchFile`, `PermissionDenied` and other `FileError` for what cannot be read, `TransferFailed` for a file
    that shrinks meanwhile (one that grows is cut), `InvalidArgument` for two sources of the same name.
    """
    packing = _Packing(on_left_out or (lambda text: None), on_progress or (lambda entries, size: None))
    for found in _walk(sources):
        with local_errors(found.path):
            yield from packing.add(found)
    yield packing.rest() + _END


class _Packing:
    """One archive in the making: small pieces are gathered to chunks."""

    def __init__(self, on_left_out: OnLeftOut, on_progress: OnCopied) -> None:
        self._on_left_out = on_left_out
        self._on_progress = on_progress
        self._entries = 0
        self._bytes = 0
        self._gathered = bytearray()
        self._linked: dict[tuple[int, int], str] = {}

    def add(self, found: _Found) -> Iterator[bytes]:
        type_ = _TYPES.get(stat.S_IFMT(found.status.st_mode))
        if type_ is None:
            self._on_left_out(f"{found.path}: a socket or a device")
            return
        try:
            if type_ == tarfile.REGTYPE:
                yield from self._add_file(found)
            else:
                link = os.readlink(found.name, dir_fd=found.directory) if type_ == tarfile.SYMTYPE else ""
                yield from self._put(_header(found.member, type_, found.status, link=link))
        except (FileNotFoundError, _Replaced):
            if found.directory is None:
                raise
            self._on_left_out(f"{found.path}: it is gone, or something else has come in its place")
            return
        self._entries += 1
        self._on_progress(self._entries, self._bytes)

    def rest(self) -> bytes:
        return bytes(self._gathered)

    def _add_file(self, found: _Found) -> Iterator[bytes]:
        fd = _open_file(found)
        try:
            status = os.fstat(fd)
            identity = (status.st_dev, status.st_ino)
            if identity in self._linked:
                link = self._linked[identity]
                yield from self._put(_header(found.member, tarfile.LNKTYPE, status, link=link))
                return
            if status.st_nlink > 1:
                self._linked[identity] = found.member
            yield from self._put(_header(found.member, tarfile.REGTYPE, status, size=status.st_size))
            yield from self._content(fd, found.path, status.st_size)
            yield from self._put(bytes(-status.st_size % BLOCK))
        finally:
            os.close(fd)

    def _content(self, fd: int, path: str, size: int) -> Iterator[bytes]:
        left = size
        while left:
            data = os.read(fd, min(left, CHUNK))
            if not data:
                raise TransferFailed(
                    f"{escaped(path)} has shrunk while it was read, from {size} bytes to {size - left}",
                    hint="copy it again when nothing writes to it",
                )
            left -= len(data)
            self._bytes += len(data)
            yield from self._put(data)
            if left:
                self._on_progress(self._entries, self._bytes)

    def _put(self, data: bytes) -> Iterator[bytes]:
        if len(self._gathered) + len(data) < CHUNK:
            self._gathered += data
            return
        if self._gathered:
            yield bytes(self._gathered)
            self._gathered.clear()
        yield data


def _header(member: str, type_: bytes, status: os.stat_result, *, size: int = 0, link: str = "") -> bytes:
    info = tarfile.TarInfo(member)
    info.type = type_
    info.mode = stat.S_IMODE(status.st_mode)
    info.uid, info.gid = status.st_uid, status.st_gid
    info.size = size
    info.linkname = link
    seconds, fraction = divmod(status.st_mtime_ns, 10**9)
    info.mtime = max(seconds, 0)
    if fraction or seconds < 0:
        info.pax_headers = {"mtime": _decimal(status.st_mtime_ns)}
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _decimal(nanoseconds: int) -> str:
    """Seconds with their fraction, as PAX has it."""
    seconds, fraction = divmod(abs(nanoseconds), 10**9)
    return f"{'-' if nanoseconds < 0 else ''}{seconds}.{fraction:09}"


class _Replaced(Exception):
    """Something else has come in the place of a file since it was found."""


def _open_file(found: _Found) -> int:
    follow = os.O_NOFOLLOW if found.directory is not None else 0
    try:
        fd = os.open(found.name, _FILE | follow, dir_fd=found.directory)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            raise _Replaced from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _Replaced
    return fd


@dataclass(frozen=True, slots=True)
class _Found:
    """Something that is to be packed. ``name`` is its name in ``directory``, which is ``None`` for a source."""

    directory: int | None
    name: str
    path: str
    member: str
    status: os.stat_result


def _walk(sources: Sequence[Source]) -> Iterator[_Found]:
    """All that is to be packed, directories before what is in them."""
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise InvalidArgument(f"two of the sources are called {escaped(name)!r}", hint="copy them one by one")
    for source in sources:
        path = str(source.path)
        with local_errors(path):
            status = source.path.stat()
        if source.name == CONTENTS and not stat.S_ISDIR(status.st_mode):
            raise NotADirectory(f"{escaped(path)} is not a directory, on this machine")
        found = _Found(None, path, path, source.name, status)
        yield found
        if stat.S_ISDIR(status.st_mode):
            yield from _below(found)


def _below(parent: _Found) -> Iterator[_Found]:
    prefix = "" if parent.member == CONTENTS else f"{parent.member}/"
    with local_errors(parent.path), _open_directory(parent) as fd:
        if fd is None:
            return
        with os.scandir(fd) as entries:
            for entry in entries:
                name = entry.name
                if prefix.count("/") == MAX_DEPTH:
                    raise InvalidArgument(
                        f"what is in {escaped(parent.path)} is more than {MAX_DEPTH} directories deep"
                    )
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                found = _Found(fd, name, f"{parent.path}/{name}", prefix + name, status)
                yield found
                if stat.S_ISDIR(status.st_mode):
                    yield from _below(found)


@contextlib.contextmanager
def _open_directory(found: _Found) -> Iterator[int | None]:
    """A descriptor of a directory, or ``None`` if it is none any more."""
    follow = os.O_NOFOLLOW if found.directory is not None else 0
    try:
        fd = os.open(found.name, _DIRECTORY | follow, dir_fd=found.directory)
    except (FileNotFoundError, NotADirectoryError):
        if found.directory is None:
            raise
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)
