"""Local files in a transfer: their errors, and the free disk space."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from squib.errors import (
    DiskFull,
    FileExists,
    InvalidArgument,
    IsADirectory,
    NoSuchFile,
    NotADirectory,
    PermissionDenied,
    SquibError,
    TransferFailed,
)

CHECK_ROOM_EVERY = 64 << 20
"""Call `check_room` again after this many bytes from a guest."""

_HOLE = bytes(16 << 10)
_SHOWN_NAME = 200
_FREE_BYTES = 1 << 30
_FREE_INODES = 10_000
_FREE_SHARE = 20
"""What a transfer leaves free on a disk: the smaller of the fixed amount and 1/20 of the disk."""
_ERRORS: dict[int, type[SquibError]] = {
    errno.ENOENT: NoSuchFile,
    errno.EEXIST: FileExists,
    errno.ENOTDIR: NotADirectory,
    errno.EISDIR: IsADirectory,
    errno.EACCES: PermissionDenied,
    errno.EPERM: PermissionDenied,
    errno.EROFS: PermissionDenied,
    errno.ENOSPC: DiskFull,
    errno.EDQUOT: DiskFull,
}


@contextmanager
def local_errors(path: str | bytes | os.PathLike[str]) -> Iterator[None]:
    """Convert an `OSError` for ``path`` to a `SquibError`.

    For example to `NoSuchFile`, `PermissionDenied` or `DiskFull`; other errors become `TransferFailed`.

    Raises `InvalidArgument` if ``path`` contains a NUL character.
    """
    if b"\0" in os.fsencode(path):
        raise InvalidArgument(f"invalid path {escaped(path)}: it contains a NUL character")
    try:
        yield
    except SquibError:
        raise
    except OSError as error:
        if error.errno is None:  # not raised by a system call
            raise
        kind = _ERRORS.get(error.errno, TransferFailed)
        raise kind(f"{escaped(path)}: {error.strerror}, on this machine") from error


def escaped(name: str | bytes | os.PathLike[str]) -> str:
    """Escape a name for use in a one-line message.

    Names over 200 characters are truncated.
    """
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    text = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return text if len(text) <= _SHOWN_NAME else text[:_SHOWN_NAME] + "…"


def write_sparse(fd: int, data: bytes) -> None:
    """Write ``data`` at the file's offset, and leave holes for zeros.

    The caller sets the file's size at the end.
    """
    start = at = 0
    while at < len(data):
        end = at
        while end < len(data) and data.startswith(_HOLE[: len(data) - end], end):
            end = min(end + len(_HOLE), len(data))
        if end == at:
            at += len(_HOLE)
            continue
        write_all(fd, data[start:at])
        os.lseek(fd, end - at, os.SEEK_CUR)
        start = at = end
    write_all(fd, data[start:])


def write_all(fd: int, data: bytes) -> None:
    """Write ``data``, also if the system takes it in parts. Raises `OSError`."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def check_room(fd: int, size: int, what: str, place: os.PathLike[str]) -> None:
    """Raise `DiskFull` if ``size`` more bytes leave too little free space.

    ``fd`` is an open file on the disk. ``what`` and ``place`` are for the message.
    """
    disk = os.fstatvfs(fd)
    free = disk.f_bavail * disk.f_frsize - size
    if free < min(_FREE_BYTES, disk.f_blocks * disk.f_frsize // _FREE_SHARE):
        raise DiskFull(f"{what} would leave too little free space on the disk of {escaped(place)}")
    if disk.f_files and disk.f_favail < min(_FREE_INODES, disk.f_files // _FREE_SHARE):
        raise DiskFull(f"the disk of {escaped(place)} is almost out of inodes")
