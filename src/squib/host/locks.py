"""Advisory file locks (flock).

An open file holds the lock, so every process that inherits the file shares it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType


class FileLock:
    """The lock of one file.

    The file is created if it is absent, and must stay while anything uses the lock.

    The lock is held until every process that shares this open file has closed it. `close` closes it in this process.
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

    def is_removed(self) -> bool:
        """Return whether the file was removed or replaced, so that others lock another one."""
        try:
            return not os.path.samestat(os.fstat(self._fd), self.path.stat())
        except FileNotFoundError:
            return True

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
    """Wait for the lock of ``path``, and hold it in the block.

    The wait does not block the event loop.

    Raises `TimeoutError`.
    """
    with FileLock(path) as lock:
        async with asyncio.timeout(timeout_s):
            while not lock.try_acquire():
                await asyncio.sleep(poll_s)
        yield lock
