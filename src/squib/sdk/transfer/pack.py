"""Pack a local directory for a guest, as a PAX tar in a stream of chunks.

Directories and files are opened relative to their parent directory, and symbolic links are never followed. This is safe
even if an entry is replaced by a symbolic link during packing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from squib.errors import InvalidArgument, TransferFailed
from squib.sdk.transfer.localfiles import escaped, local_errors
from squib.sdk.transfer.tar import BLOCK, CHUNK, MAX_DEPTH, XATTR_RECORD

Xattrs = tuple[tuple[bytes, bytes], ...]
"""Names and values of extended attributes."""

_MAX_XATTRS = 256 << 10
_ROOT = "."
_END = bytes(2 * BLOCK)
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


def measure(directory: str) -> int:
    """Return how many bytes of files `Packing` would send now.

    Blocks.

    Raises the errors of `Packing.chunks`.
    """
    total = 0
    linked: set[tuple[int, int]] = set()
    for found in _walk(directory):
        status = found.status
        identity = (status.st_dev, status.st_ino)
        if stat.S_ISREG(status.st_mode) and identity not in linked:
            total += status.st_size
            if status.st_nlink > 1:
                linked.add(identity)
    return total


class Packing:
    """An archive of a directory, as ``./``, and its contents.

    It keeps permission bits including set-id, symbolic and hard links, FIFOs, times in nanoseconds, numeric owners, and
    names byte for byte. ``entries`` and ``bytes`` (of file content) count what is packed so far. ``left_out`` lists
    skipped files with the reason: sockets, devices, and files that disappeared during packing. With ``xattrs``, it
    keeps extended attributes of the ``user`` namespace too.
    """

    def __init__(self, directory: str, *, xattrs: bool = False) -> None:
        self._xattrs = xattrs
        self.entries = 0
        self.bytes = 0
        self.left_out: list[str] = []
        self._directory = directory
        self._gathered = bytearray()
        self._linked: dict[tuple[int, int], str] = {}

    def chunks(self) -> Iterator[bytes]:
        """Yield the archive in chunks of about 256 KiB.

        Call it once. Blocks while reading. A file that grows during packing is truncated to its initial size.

        Raises `TransferFailed` for a file that shrinks, `InvalidArgument` for a tree of more than 100 levels, and
        `NoSuchFile`, `NotADirectory`, `PermissionDenied` or another `FileError` for an entry that cannot be read.
        """
        for found in _walk(self._directory):
            with local_errors(found.path):
                yield from self._add(found)
        yield bytes(self._gathered) + _END

    def _add(self, found: _Found) -> Iterator[bytes]:
        type_ = _TYPES.get(stat.S_IFMT(found.status.st_mode))
        if type_ is None:
            self.left_out.append(f"{found.path}: a socket or a device")
            return
        try:
            if type_ == tarfile.REGTYPE:
                yield from self._add_file(found)
            else:
                link = os.readlink(found.name, dir_fd=found.directory) if type_ == tarfile.SYMTYPE else ""
                xattrs: Xattrs = ()
                if self._xattrs and type_ == tarfile.DIRTYPE:
                    xattrs = read_xattrs(f"/proc/self/fd/{found.directory}/{found.name}")
                yield from self._put(_header(found.member, type_, found.status, link=link, xattrs=xattrs))
        except (FileNotFoundError, _Replaced):
            self.left_out.append(f"{found.path}: it was removed or replaced during packing")
            return
        self.entries += 1

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
            yield from self._put_file(fd, found.path, found.member, status)
        finally:
            os.close(fd)

    def _put_file(
        self, fd: int, path: str, member: str, status: os.stat_result, mode: int | None = None
    ) -> Iterator[bytes]:
        xattrs = read_xattrs(fd) if self._xattrs else ()
        yield from self._put(_header(member, tarfile.REGTYPE, status, mode=mode, size=status.st_size, xattrs=xattrs))
        yield from self._content(fd, path, status.st_size)
        yield from self._put(bytes(-status.st_size % BLOCK))

    def file_chunks(self, fd: int, member: str, mode: int) -> Iterator[bytes]:
        """Yield an archive of one open file with the name ``member``.

        Call it once, instead of `chunks`.
        """
        with local_errors(self._directory):
            yield from self._put_file(fd, self._directory, member, os.fstat(fd), mode)
        self.entries += 1
        yield bytes(self._gathered) + _END

    def _content(self, fd: int, path: str, size: int) -> Iterator[bytes]:
        left = size
        while left:
            data = os.read(fd, min(left, CHUNK))
            if not data:
                raise TransferFailed(
                    f"{escaped(path)} shrank while it was read, from {size} to {size - left} bytes",
                    hint="copy it again when no process writes to it",
                )
            left -= len(data)
            self.bytes += len(data)
            yield from self._put(data)

    def _put(self, data: bytes) -> Iterator[bytes]:
        if len(self._gathered) + len(data) < CHUNK:
            self._gathered += data
            return
        if self._gathered:
            yield bytes(self._gathered)
            self._gathered.clear()
        yield data


def _header(
    member: str,
    type_: bytes,
    status: os.stat_result,
    *,
    mode: int | None = None,
    size: int = 0,
    link: str = "",
    xattrs: Xattrs = (),
) -> bytes:
    return encode_header(
        member,
        type_,
        mode=stat.S_IMODE(status.st_mode) if mode is None else mode,
        owner=(status.st_uid, status.st_gid),
        mtime_ns=status.st_mtime_ns,
        size=size,
        link=link,
        xattrs=xattrs,
    )


def encode_header(
    member: str,
    type_: bytes,
    *,
    mode: int,
    owner: tuple[int, int],
    mtime_ns: int,
    size: int,
    link: str,
    xattrs: Xattrs = (),
) -> bytes:
    """Encode the header of an archive entry.

    ``type_`` is one of `tarfile`'s, ``owner`` a user and a group ID.
    """
    info = tarfile.TarInfo(member)
    info.type = type_
    info.mode = mode
    info.uid, info.gid = owner
    info.size = size
    info.linkname = link
    seconds, fraction = divmod(mtime_ns, 10**9)
    info.mtime = max(seconds, 0)
    if fraction or seconds < 0:
        info.pax_headers = {"mtime": _decimal(mtime_ns)}
    for name, value in xattrs:
        info.pax_headers = {**info.pax_headers, _text(XATTR_RECORD + name): _text(value)}
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def _decimal(nanoseconds: int) -> str:
    """Format nanoseconds as decimal seconds, as in PAX records."""
    seconds, fraction = divmod(abs(nanoseconds), 10**9)
    return f"{'-' if nanoseconds < 0 else ''}{seconds}.{fraction:09}"


def read_xattrs(file: int | str) -> Xattrs:
    """Return the ``user`` extended attributes of a file, up to 256 KiB.

    ``file`` may be a directory. Attributes beyond the limit are left out.
    """
    found = []
    left = _MAX_XATTRS
    try:
        for name in os.listxattr(file):
            if name.startswith("user.") and "=" not in name:
                value = os.getxattr(file, name)
                if (left := left - len(name) - len(value)) >= 0:
                    found.append((os.fsencode(name), value))
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.ENODATA):
            raise
    return tuple(found)


class _Replaced(Exception):
    """A file was replaced by another type of file after it was found."""


def _open_file(found: _Found) -> int:
    try:
        fd = os.open(found.name, _FILE, dir_fd=found.directory)
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
    """A directory entry to pack.

    ``name`` is its name in the open directory ``directory``, ``member`` its name in the archive.
    """

    directory: int
    name: str
    path: str
    member: str
    status: os.stat_result


def _walk(directory: str) -> Iterator[_Found]:
    """Yield the directory and everything below it, parents first."""
    with local_errors(directory):
        fd = os.open(directory, _DIRECTORY)
        try:
            yield _Found(fd, _ROOT, directory, _ROOT, os.fstat(fd))
            yield from _below(fd, directory, "")
        finally:
            os.close(fd)


def _below(fd: int, path: str, prefix: str) -> Iterator[_Found]:
    with local_errors(path), os.scandir(fd) as entries:
        for entry in entries:
            if prefix.count("/") == MAX_DEPTH:
                raise InvalidArgument(f"{escaped(path)} is too deep: the limit is {MAX_DEPTH} nested directories")
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            found = _Found(fd, entry.name, f"{path}/{entry.name}", prefix + entry.name, status)
            yield found
            if not stat.S_ISDIR(status.st_mode):
                continue
            with local_errors(found.path), _opened(entry.name, fd) as below:
                if below is not None:
                    yield from _below(below, found.path, f"{found.member}/")


@contextlib.contextmanager
def _opened(name: str, parent: int) -> Iterator[int | None]:
    """Yield a descriptor of a directory, ``None`` if removed or replaced."""
    try:
        fd = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    except (FileNotFoundError, NotADirectoryError):
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)
