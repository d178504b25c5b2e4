"""A new local file that appears only when it is complete."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path
from typing import Self

from squib.errors import FileExists, IsADirectory, NotAFile
from squib.host.files import sync_directory
from squib.sdk.transfer.localfiles import check_room, escaped, local_errors, write_all

_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)


class NewFile:
    """A file that `finish` gives its name. Until then it has none, so that nothing is left of it, even after a kill.

    On filesystems that cannot have such files (NFS) it has a temporary name beside ``place``. With ``replace`` it may
    replace a file. Use it as a context manager.

    Raises `FileExists`, `IsADirectory`, `NotAFile`, and the other errors of `local_errors`.
    """

    def __init__(self, place: Path, *, replace: bool) -> None:
        with local_errors(place):
            self._place = place.resolve() if replace else place.absolute()
            self._replace = replace
            _check(self._place, replace)
            self._temporary = self._place.parent / f".squib-{secrets.token_hex(8)}"
            try:
                self._fd = os.open(self._place.parent, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
                self._has_name = False
            except OSError as error:
                if error.errno not in _NO_TMPFILE:
                    raise
                self._fd = os.open(self._temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
                self._has_name = True

    def reserve(self, size: int, what: str) -> None:
        """Raise `DiskFull` if a file of ``size`` bytes would leave too little free space."""
        with local_errors(self._place):
            check_room(self._fd, size, what, self._place)

    def write(self, data: bytes) -> None:
        """Write ``data`` at the end."""
        with local_errors(self._place):
            write_all(self._fd, data)

    def finish(self) -> None:
        """Flush the file to the disk, and give it its name."""
        with local_errors(self._place):
            os.fsync(self._fd)
            if self._replace:
                if not self._has_name:
                    self._link(self._temporary)
                    self._has_name = True
                self._temporary.rename(self._place)
                self._has_name = False
            elif self._has_name:
                self._place.hardlink_to(self._temporary)
            else:
                self._link(self._place)
            sync_directory(self._place.parent)

    def _link(self, name: Path) -> None:
        # With a directory's descriptor, Python follows the link in /proc; without one, it does not.
        os.link(f"/proc/self/fd/{self._fd}", name, src_dir_fd=self._fd, follow_symlinks=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
        if self._has_name:
            self._temporary.unlink(missing_ok=True)


def _check(place: Path, replace: bool) -> None:
    if place.is_dir():
        raise IsADirectory(f"{escaped(place)} is a directory", hint="give the name of a new file")
    if os.path.lexists(place):
        if not replace:
            raise FileExists(f"{escaped(place)} already exists", hint="choose another name, or replace it: --force")
        if not place.is_file():
            raise NotAFile(f"{escaped(place)} is not a regular file")
