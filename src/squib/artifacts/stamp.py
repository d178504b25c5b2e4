"""Stamps: a cheap check that a file is unchanged since it was hashed."""

from __future__ import annotations

from pathlib import Path

from squib.models import StoredModel


class Stamp(StoredModel):
    """What changes when a file is written to or replaced.

    A program can set the modification time back, but not the change time. A stamp of a former squib has no change
    time and matches no file, so its file is hashed again.
    """

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int = 0

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Return the current stamp of ``path``. Raises `OSError`."""
        found = path.stat()
        return cls(inode=found.st_ino, size=found.st_size, mtime_ns=found.st_mtime_ns, ctime_ns=found.st_ctime_ns)
