"""Files of this machine that go to a guest or come from one: what the operating system's errors are called."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from squib.errors import (
    DiskFull,
    FileExists,
    NoSuchFile,
    NotADirectory,
    NotAFile,
    PermissionDenied,
    SquibError,
    TransferFailed,
)

CHECK_ROOM_EVERY = 64 << 20
"""After how many bytes from a guest `check_room` is to be asked again."""

_SHOWN_NAME = 200
_FREE_BYTES, _FREE_INODES, _FREE_SHARE = 1 << 30, 10_000, 20  # a twentieth, or less
_ERRORS: dict[int, type[SquibError]] = {
    errno.ENOENT: NoSuchFile,
    errno.EEXIST: FileExists,
    errno.ENOTDIR: NotADirectory,
    errno.EISDIR: NotAFile,
    errno.EACCES: PermissionDenied,
    errno.EPERM: PermissionDenied,
    errno.EROFS: PermissionDenied,
    errno.ENOSPC: DiskFull,
    errno.EDQUOT: DiskFull,
}


@contextmanager
def local_errors(path: str | bytes | os.PathLike[str]) -> Iterator[None]:
    """Raise what the operating system says of ``path`` as an error of squib's tree: `NoSuchFile`, `PermissionDenied`,
    `DiskFull` and so on, `TransferFailed` for the rest.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:  # not the operating system's
            raise
        kind = _ERRORS.get(error.errno, TransferFailed)
        raise kind(f"{escaped(path)}: {error.strerror}, on this machine") from error


def escaped(name: str | bytes | os.PathLike[str]) -> str:
    """A name as one line of a message, whatever is in it; a very long one is cut."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    text = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return text if len(text) <= _SHOWN_NAME else text[:_SHOWN_NAME] + "…"


def check_room(fd: int, size: int, what: str, place: os.PathLike[str]) -> None:
    """Raise `DiskFull` if ``size`` bytes more of ``what`` would leave too little room on the disk that ``fd`` is on."""
    disk = os.fstatvfs(fd)
    free = disk.f_bavail * disk.f_frsize - size
    if free < min(_FREE_BYTES, disk.f_blocks * disk.f_frsize // _FREE_SHARE):
        raise DiskFull(f"{what} would leave too little room on the disk of {escaped(place)}")
    if disk.f_files and disk.f_favail < min(_FREE_INODES, disk.f_files // _FREE_SHARE):
        raise DiskFull(f"the disk of {escaped(place)} has hardly room for more files (inodes)")
