"""cpio archives in the "newc" format, which the kernel unpacks at boot.

The format is described in the kernel's ``Documentation/driver-api/early-userspace/buffer-format.rst``. An archive has
no times or owners, and its inode numbers count up, so equal entries give equal bytes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_TRAILER = "TRAILER!!!"


@dataclass(frozen=True)
class Entry:
    """A file, directory or device node, owned by root.

    ``path`` is relative; ``mode`` includes the file type.
    """

    path: str
    mode: int
    data: bytes = b""
    rdev: int = 0


def directory(path: str) -> Entry:
    return Entry(path, stat.S_IFDIR | 0o755)


def regular(path: str, data: bytes, *, executable: bool = False) -> Entry:
    return Entry(path, stat.S_IFREG | (0o755 if executable else 0o644), data)


def character_device(path: str, major: int, minor: int) -> Entry:
    return Entry(path, stat.S_IFCHR | 0o600, rdev=os.makedev(major, minor))


def archive(entries: Iterable[Entry]) -> Iterator[bytes]:
    """Yield the archive of ``entries`` in pieces.

    A directory must come before its content.
    """
    inode = 0
    for inode, entry in enumerate(entries, start=1):
        yield _header(entry, inode)
        yield _padded(entry.data)
    yield _header(Entry(_TRAILER, 0), inode + 1)


def _header(entry: Entry, inode: int) -> bytes:
    name = os.fsencode(entry.path) + b"\0"
    fields = (
        inode,
        entry.mode,
        0,  # uid
        0,  # gid
        2 if stat.S_ISDIR(entry.mode) else 1,
        0,  # mtime
        len(entry.data),
        0,  # major and minor of the device with the file
        0,
        os.major(entry.rdev),
        os.minor(entry.rdev),
        len(name),
        0,  # checksum, unused in newc
    )
    return _padded(b"070701" + b"".join(b"%08X" % field for field in fields) + name)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
