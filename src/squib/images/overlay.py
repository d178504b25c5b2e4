"""Overlays: the private writable layer of each VM, a sparse copy of an empty ext4 file system."""

from __future__ import annotations

import asyncio
from pathlib import Path

from squib.artifacts.building import Build, build_file
from squib.host import files, proc
from squib.paths import Home

_FORMAT_VERSION = 1
_SMALL_MIB = 64


class OverlayStore:
    """Makes overlays. An empty file system of each size that was asked for is kept, and costs little."""

    def __init__(self, home: Home) -> None:
        self._home = home

    async def create(self, target: Path, size_mib: int) -> None:
        """Make the empty overlay ``target``, which must not exist, of ``size_mib``. A few milliseconds after the first.

        Raises `DiskFull`, `DependencyMissing`, `ToolFailed`.
        """
        empty = await self._empty(size_mib)
        await asyncio.to_thread(files.sparse_copy, empty, target)

    async def _empty(self, size_mib: int) -> Path:
        name = f"empty-v{_FORMAT_VERSION}-{size_mib}m.ext4"

        async def make(build: Build, path: Path) -> None:
            await proc.run(["mkfs.ext4", *_options(size_mib), path, f"{size_mib}M"], lock=build.lock)

        return await build_file(self._home, f"overlay-{size_mib}m", self._home.overlays / name, make)


def _options(size_mib: int) -> list[str]:
    """An empty file system that takes little on the host: 0.1 MiB at 16 MiB, 0.25 MiB at 10 GiB, 1.1 MiB at 100 GiB.

    A sparse file is zeroed as it is, and the file system says so (``assume_storage_prezeroed``): a guest would
    otherwise spend its first minutes writing zeros into the inode tables, 160 MiB of them at 10 GiB. No block is
    reserved for root, nor for group descriptors (a file system grows without). The journal is small, since it ends up
    on the host's disk.
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
