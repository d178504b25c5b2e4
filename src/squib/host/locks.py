"""Advisory locks on files (flock): held by an open file, so by every process that inherits it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType


class FileLock:
    """The lock of one file, which is created if it is not there and never removed while it is used as a lock.

    The lock lives as long as any process has this open file. `close` gives up this process's share.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def fileno(self) -> int:
        return self._fd

    def try_acquire(self) -> bool:
        """Take the lock if it is free."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def acquire(self) -> None:
        """Wait for the lock."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> FileLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextlib.asynccontextmanager
async def locked(path: Path, *, timeout_s: float | None = None, poll_s: float = 0.05) -> AsyncIterator[FileLock]:
    """Hold the lock at ``path``, waiting for it without blocking the event loop. Raises `TimeoutError`."""
    with FileLock(path) as lock:
        async with asyncio.timeout(timeout_s):
            while not lock.try_acquire():
                await asyncio.sleep(poll_s)
        yield lock
