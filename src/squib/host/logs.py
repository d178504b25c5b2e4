"""Logs of bounded size, for what a guest prints."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_MIB = 1 << 20


class BoundedLog:
    """A file of at most ``max_bytes`` (default 1 MiB), with the bytes before it in ``<path>.1``.

    The file is filled to its last byte before it is rotated, so the latest ``max_bytes`` can always be read (`tail`)
    and never more than twice that is on the disk. `append` never raises for the disk's sake: a guest's output is no
    reason for the engine to fail. What cannot be written is dropped, and a line in the log says so once there is room
    again.
    """

    def __init__(self, path: Path, max_bytes: int = _MIB) -> None:
        self.path = path
        self.dropped_bytes = 0
        self._max_bytes = max_bytes
        self._fd = -1
        self._size = 0

    def append(self, data: bytes) -> None:
        """Write ``data``, or as much of it as the disk takes."""
        if self.dropped_bytes:
            lost = b"\n[squib: %d bytes lost: the log could not be written]\n" % self.dropped_bytes
            if self._write(lost):
                self.dropped_bytes += len(data)
                return
            self.dropped_bytes = 0
        self.dropped_bytes += len(self._write(data))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, data: bytes) -> bytes:
        """Write and rotate; return what could not be written."""
        try:
            while data:
                if self._fd < 0:
                    self._open()
                if self._size >= self._max_bytes:
                    self._rotate()
                written = os.write(self._fd, data[: self._max_bytes - self._size])
                self._size += written
                data = data[written:]
        except OSError:
            self.close()
        return data

    def _open(self) -> None:
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size

    def _rotate(self) -> None:
        self.close()
        self.path.replace(rotated(self.path))
        self._open()


def rotated(path: Path) -> Path:
    """Where the bytes before those of ``path`` are."""
    return path.with_name(path.name + ".1")


def remove(path: Path) -> None:
    """Remove a log and its predecessor; nothing there is fine."""
    path.unlink(missing_ok=True)
    rotated(path).unlink(missing_ok=True)


def tail(path: Path, max_bytes: int = _MIB, *, lines: int | None = None) -> bytes:
    """The last ``max_bytes`` of a log and its predecessor, or the last ``lines`` of them; empty if there is no log."""
    data = b""
    for part in (path, rotated(path)):
        with contextlib.suppress(FileNotFoundError):
            data = _last_bytes(part, max_bytes - len(data)) + data
    return data if lines is None else b"".join(data.splitlines(keepends=True)[-lines:]) if lines else b""


def _last_bytes(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - count))
        return file.read(count)
