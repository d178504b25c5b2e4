"""Logs of bounded size, for the output of guests and VMMs."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path

_MIB = 1 << 20
_READ_BYTES = 1 << 16
_MAX_LAST_READS = 64


class BoundedLog:
    """A file of at most ``max_bytes`` (default 1 MiB).

    ``<path>.1`` holds the bytes before it.

    The file is filled completely before it is rotated. `tail` can therefore always read the last ``max_bytes``, and the
    two files together never hold more than twice that. `append` ignores disk errors, because a guest's output must not
    make the engine fail. Bytes that cannot be written are dropped. As soon as the log can be written again, a line in
    it says how many were dropped.
    """

    def __init__(self, path: Path, max_bytes: int = _MIB) -> None:
        self.path = path
        self.dropped_bytes = 0
        self._max_bytes = max_bytes
        self._fd = -1
        self._size = 0

    def append(self, data: bytes) -> None:
        """Append ``data``, or as much of it as the disk has room for."""
        if self.dropped_bytes:
            notice = b"\n[squib: %d bytes lost: the log could not be written]\n" % self.dropped_bytes
            if self._write(notice):
                self.dropped_bytes += len(data)
                return
            self.dropped_bytes = 0
        self.dropped_bytes += len(self._write(data))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, data: bytes) -> bytes:
        """Write and rotate; return the bytes that could not be written."""
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


class LogPump:
    """Copies the bytes that arrive on a descriptor into a log.

    It never blocks.

    A guest may print as fast as it can. After each read of at most 64 KiB, the pump therefore pauses for ``pause_s``
    seconds, so that the event loop spends little time on it.
    """

    def __init__(self, fd: int, log: BoundedLog, *, pause_s: float) -> None:
        """Take over the descriptor of a pipe or a socket."""
        os.set_blocking(fd, False)
        self.on_data: Callable[[bytes], object] | None = None
        """Called with the bytes that were copied."""
        self._fd = fd
        self._log = log
        self._pause_s = pause_s
        self._loop = asyncio.get_running_loop()
        self._next_read: asyncio.TimerHandle | None = None
        self._wait()

    def close(self) -> None:
        """Copy what has arrived, at most 4 MiB, and close the descriptor.

        Idempotent.
        """
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                for _ in range(_MAX_LAST_READS):
                    if not self._copy():
                        break
            self._end()

    def _wait(self) -> None:
        self._next_read = None
        self._loop.add_reader(self._fd, self._read)

    def _read(self) -> None:
        self._loop.remove_reader(self._fd)
        try:
            ended = not self._copy()
        except BlockingIOError:
            ended = False
        except OSError:
            ended = True
        if ended:
            self._end()
        else:
            self._next_read = self._loop.call_later(self._pause_s, self._wait)

    def _copy(self) -> bool:
        """Copy once; return whether more may arrive.

        Raises `BlockingIOError` if nothing has arrived.
        """
        data = os.read(self._fd, _READ_BYTES)
        self._log.append(data)
        if self.on_data:
            self.on_data(data)
        return bool(data)

    def _end(self) -> None:
        if self._next_read:
            self._next_read.cancel()
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._fd = -1
        self._log.close()


def make_pipe(path: Path) -> None:
    """Create a named pipe for this user only; replace what is at ``path``."""
    path.unlink(missing_ok=True)
    os.mkfifo(path, 0o600)


def pump_pipe(path: Path, log: BoundedLog, *, pause_s: float) -> LogPump:
    """Copy the bytes that arrive on a named pipe into a log.

    Raises `OSError`.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    return LogPump(fd, log, pause_s=pause_s)


def rotated(path: Path) -> Path:
    """Return the path of the rotated log, which holds the older bytes."""
    return path.with_name(path.name + ".1")


def remove(path: Path) -> None:
    """Remove a log and its rotated file, if they exist."""
    path.unlink(missing_ok=True)
    rotated(path).unlink(missing_ok=True)


def tail(path: Path, max_bytes: int = _MIB, *, lines: int | None = None) -> bytes:
    """Return the end of a log: at most ``max_bytes``, and at most ``lines``.

    Includes the rotated file. Empty if there is no log.
    """
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
