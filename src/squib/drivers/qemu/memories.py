"""The saved memories that VMs of this engine run from, each once in this host's memory.

QEMU before 8.2 opens the file that it maps for writing, even if it maps it privately. So it gets a sealed memfd instead
of the file: no process can write to that.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from pathlib import Path

from squib.errors import HostError
from squib.host import memory
from squib.host.files import OwnedFd

_KEPT = 4
"""How many memories are kept for the next VM. Those in use are kept by their VMMs."""
_KEPT_S = 20.0
"""How long the memory of a file that was removed is kept: the other forks of a VM may be about to use it."""


class SavedMemories:
    """The memfds of the files that were used last. Links to one file have one memfd."""

    def __init__(self) -> None:
        self._loaded: dict[tuple[int, ...], tuple[Path, OwnedFd]] = {}
        """The memfds, and the path that each was used by last."""
        self._loading = asyncio.Lock()

    async def open(self, path: Path) -> int:
        """Return a descriptor of a memfd with the content of the file ``path``, which never changes.

        The caller closes it.

        Raises `HostError` if the file cannot be read.
        """
        try:
            found = path.stat()
            key = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
            async with self._loading:
                memfd = self._loaded.pop(key)[1] if key in self._loaded else OwnedFd(await _load(path))
                self._loaded[key] = path, memfd  # the last one used is the last one forgotten
                while len(self._loaded) > _KEPT:
                    del self._loaded[next(iter(self._loaded))]
                asyncio.get_running_loop().call_later(_KEPT_S, _forget_removed, weakref.ref(self))
                return os.dup(memfd.fileno())
        except OSError as error:
            raise HostError(f"the saved memory {path} cannot be loaded: {error.strerror}") from error

    def _forget_removed(self) -> None:
        for key, (path, _) in list(self._loaded.items()):
            if not path.exists():
                del self._loaded[key]


def _forget_removed(saved: weakref.ref[SavedMemories]) -> None:
    if found := saved():
        found._forget_removed()


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
