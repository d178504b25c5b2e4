"""`AsyncImages` and `Images`: building and bringing root filesystems from Python."""

from __future__ import annotations

import os
from pathlib import Path

from squib.images.packing import pack_rootfs
from squib.models import ImageInfo, OnProgress
from squib.sdk.client import EngineClient
from squib.sdk.portal import Portal


class AsyncImages:
    """The root filesystems of an engine, by default the local one or ``$SQUIB_URL``."""

    def __init__(self, *, engine: EngineClient | None = None) -> None:
        self._engine = engine or EngineClient()
        self._owns_engine = engine is None

    async def close(self) -> None:
        """Release this object's connections. Idempotent."""
        if self._owns_engine:
            await self._engine.close()

    async def list(self) -> list[ImageInfo]:
        """The images in the cache, by name."""
        return await self._engine.images()

    async def build(
        self, runtime: str, *, rebuild: bool = False, on_progress: OnProgress = lambda _: None
    ) -> ImageInfo:
        """Build a runtime's image unless it is there; with ``rebuild``, build it again from today's packages.

        Raises `NotFound` for a name that is no runtime, `ToolFailed`, `DependencyMissing`, `DiskFull`.
        """
        return await self._engine.build_image(runtime, rebuild=rebuild, on_progress=on_progress)

    async def remove(self, name: str) -> None:
        """Remove an image from the cache. Raises `NotFound`, `Conflict` if a VM uses it."""
        await self._engine.remove_image(name)

    async def pack(self, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> Path:
        """Pack a directory or a tar (plain or compressed) into the new squashfs ``target``, on this machine.

        Returns its path, for `VMConfig.rootfs_path`. Raises `InvalidArgument`, `ToolFailed`, `DependencyMissing`,
        `DiskFull`; nothing is left then.
        """
        return (await pack_rootfs(Path(source), Path(target))).path


class Images:
    """`AsyncImages` for programs without an event loop."""

    def __init__(self, *, engine: EngineClient | None = None) -> None:
        self._portal = Portal.get()
        self._images = AsyncImages(engine=engine or self._portal.engine())

    def close(self) -> None:
        """See `AsyncImages.close`."""
        self._portal.run(self._images.close())

    def list(self) -> list[ImageInfo]:
        """See `AsyncImages.list`."""
        return self._portal.run(self._images.list())

    def build(self, runtime: str, *, rebuild: bool = False, on_progress: OnProgress = lambda _: None) -> ImageInfo:
        """See `AsyncImages.build`. The callback is called on a thread of squib's."""
        return self._portal.run(self._images.build(runtime, rebuild=rebuild, on_progress=on_progress))

    def remove(self, name: str) -> None:
        """See `AsyncImages.remove`."""
        self._portal.run(self._images.remove(name))

    def pack(self, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> Path:
        """See `AsyncImages.pack`."""
        return self._portal.run(self._images.pack(source, target))
