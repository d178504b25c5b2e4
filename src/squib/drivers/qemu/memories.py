"""The saved memories that VMs of this engine run from, each once in this host's memory.

QEMU before 8.2 opens the file that it maps for writing, even if it maps it privately. So it gets a sealed memfd instead
of the file: no process can write to that.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from squib.errors import HostError
from squib.host import memory

_KEPT = 4
"""How many memories are kept for the next VM. Those in use are kept by their VMMs."""


class SavedMemories:
    """The memfds of the files that were used last."""

    def __init__(self) -> None:
        self._fds: dict[Path, int] = {}
        self._loading = asyncio.Lock()

    async def open(self, path: Path) -> int:
        """Return a descriptor of a memfd with the content of the file ``path``, which never changes.

        The caller closes it.

        Raises `HostError` if the file cannot be read.
        """
        try:
            async with self._loading:
                self._forget_removed()
                fd = self._fds.pop(path, None)
                if fd is None:
                    fd = await _load(path)
                self._fds[path] = fd  # the last one used is the last one closed
                while len(self._fds) > _KEPT:
                    self._close(next(iter(self._fds)))
                return os.dup(fd)
        except OSError as error:
            raise HostError(f"the saved memory {path} cannot be loaded: {error.strerror}") from error

    def _forget_removed(self) -> None:
        for path in [path for path in self._fds if not path.exists()]:
            self._close(path)

    def _close(self, path: Path) -> None:
        os.close(self._fds.pop(path))


async def _load(path: Path) -> int:
    """Load a file in a thread. If this is cancelled, the thread's memfd is closed when it is there."""
    loading = asyncio.ensure_future(asyncio.to_thread(memory.filled, path))
    try:
        return await asyncio.shield(loading)
    except asyncio.CancelledError:
        loading.add_done_callback(_close_result)
        raise


def _close_result(loading: asyncio.Future[int]) -> None:
    if not loading.cancelled() and loading.exception() is None:
        os.close(loading.result())
