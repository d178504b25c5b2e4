"""Overlays: each VM's private writable layer, a sparse ext4 file system."""

from __future__ import annotations

import asyncio
from pathlib import Path

from squib.artifacts.building import Build, no_progress
from squib.artifacts.checked import build_file
from squib.host import files, proc
from squib.models import OnProgress, Progress
from squib.paths import Home

_FORMAT_VERSION = 1
_SMALL_MIB = 64


class OverlayStore:
    """Creates overlays.

    The cache keeps an empty file system of each size; it takes little space.
    """

    def __init__(self, home: Home) -> None:
        self._home = home

    async def create(self, target: Path, size_mib: int, on_progress: OnProgress = no_progress) -> None:
        """Create the empty overlay ``target``, which must not exist.

        Takes milliseconds after the first of a size.

        Step: ``format disk``, if the cache has no empty file system of this size.

        Raises `DiskFull`, `DependencyMissing`, `ToolFailed`.
        """
        empty = await self._empty(size_mib, on_progress)
        await asyncio.to_thread(files.sparse_copy, empty, target)

    async def _empty(self, size_mib: int, on_progress: OnProgress) -> Path:
        name = f"empty-v{_FORMAT_VERSION}-{size_mib}m.ext4"

        async def make(build: Build, path: Path) -> None:
            build.report(Progress(step="format disk"))
            await proc.run(["mkfs.ext4", *_options(size_mib), path, f"{size_mib}M"], lock=build.lock)

        target = self._home.overlays / name
        return await build_file(self._home, f"overlay-{size_mib}m", target, make, on_progress)


def _options(size_mib: int) -> list[str]:
    """Return mkfs options for a file system that takes little space.

    It takes 0.1 MiB at 16 MiB, 0.25 at 10 GiB, and 1.1 at 100 GiB. A sparse file reads as zeros, and
    ``assume_storage_prezeroed`` tells mkfs so. Otherwise a guest writes zeros into the inode tables in its first
    minutes: 160 MiB at 10 GiB. No blocks are reserved for root or for group descriptors; the file system can grow
    without the latter. The journal is small because it takes space on the host's disk.
    """
    small = size_mib < _SMALL_MIB
    return [
        "-q",
        "-F",
        "-b", "1024" if small else "4096",
        "-J", "size=1" if small else "size=8",
        "-L", "squib-overlay",
        "-m", "0",
        "-O", "^resize_inode",
        "-E", "assume_storage_prezeroed=1,nodiscard",
    ]  # fmt: skip
