"""The saved memories that VMs of this engine run from, each once in this host's memory.

QEMU before 8.2 opens the file that it maps for writing, even if it maps it privately. So it gets a sealed memfd instead
of the file: no process can write to that.
"""

from __future__ import annotations

import asyncio
import weakref
from pathlib import Path

from squib.errors import HostError
from squib.host import memory
from squib.host.files import OwnedFd

_KEPT = 4
"""How many memories are kept for the next VM. Those in use are kept by their VMMs."""
_KEPT_S = 20.0
"""How long the memory of a file that was removed is kept: the other forks of a VM may be about to use it."""


class LoadingMemory:
    """A memfd that is being filled with the content of a file. It may be mapped before it is `loaded`, but not used."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path = path
        """The file, by the name that was used last."""
        self.memfd = OwnedFd(memory.fresh(size_bytes))
        self.filling = asyncio.ensure_future(asyncio.to_thread(memory.fill, self.memfd, path))

    async def loaded(self) -> None:
        """Wait until the memfd has its content. Raises `HostError` if the file cannot be read."""
        try:
            await asyncio.shield(self.filling)
        except OSError as error:
            raise _cannot_load(self.path, error) from error


class SavedMemories:
    """The memfds of the files that were used last. Links to one file have one memfd."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, ...], LoadingMemory] = {}

    def open(self, path: Path) -> LoadingMemory:
        """Return the memfd for the file ``path``, which never changes. It is filled in the background.

        Raises `HostError` if there is no such file.
        """
        try:
            found = path.stat()
            key = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
            loading = self._kept.pop(key, None)
            if loading is None:
                loading = LoadingMemory(path, found.st_size)
                loading.filling.add_done_callback(lambda filling: self._forget_failed(key, filling))
        except OSError as error:
            raise _cannot_load(path, error) from error
        loading.path = path
        self._kept[key] = loading  # the last one used is the last one forgotten
        while len(self._kept) > _KEPT:
            del self._kept[next(iter(self._kept))]
        asyncio.get_running_loop().call_later(_KEPT_S, _forget_removed, weakref.ref(self))
        return loading

    def _forget_failed(self, key: tuple[int, ...], filling: asyncio.Future[None]) -> None:
        if filling.cancelled() or filling.exception() is not None:
            self._kept.pop(key, None)

    def _forget_removed(self) -> None:
        for key, loading in list(self._kept.items()):
            if not loading.path.exists():
                del self._kept[key]


def _forget_removed(saved: weakref.ref[SavedMemories]) -> None:
    if found := saved():
        found._forget_removed()


def _cannot_load(path: Path, error: OSError) -> HostError:
    return HostError(f"the saved memory {path} cannot be loaded: {error.strerror}")
