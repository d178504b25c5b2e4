"""Building and managing root filesystem images: `AsyncImages` and `Images`."""

from __future__ import annotations

import os
from pathlib import Path

from squib.images.packing import pack_rootfs
from squib.models import ImageInfo, OnProgress
from squib.sdk.client import EngineClient
from squib.sdk.part import EnginePart
from squib.sdk.portal import Portal


class AsyncImages(EnginePart):
    """An engine's root filesystem images, for asyncio programs.

    ``engine`` defaults to the engine at ``$SQUIB_URL``, or to the local one.
    """

    async def list(self) -> list[ImageInfo]:
        """List the images in the cache."""
        return await self._engine.images()

    async def build(
        self, runtime: str, *, rebuild: bool = False, on_progress: OnProgress = lambda _: None
    ) -> ImageInfo:
        """Build a runtime's image if it is not in the cache.

        With ``rebuild``, build it again with the current packages. ``on_progress`` is called with each build step.

        Raises `NotFound` for an unknown runtime, `ToolFailed`, `DependencyMissing`, and `DiskFull`.
        """
        return await self._engine.build_image(runtime, rebuild=rebuild, on_progress=on_progress)

    async def remove(self, name: str) -> None:
        """Remove an image from the cache.

        Raises `NotFound`, and `Conflict` if a VM uses the image.
        """
        await self._engine.remove_image(name)

    async def pack(self, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> Path:
        """Pack a local directory or tar archive into a new squashfs image.

        The archive may be compressed. Returns the path of the image ``target``, for `VMConfig.rootfs_path`. On error,
        no file is left behind.

        Raises `InvalidArgument`, `ToolFailed`, `DependencyMissing`, `DiskFull`.
        """
        return (await pack_rootfs(Path(source), Path(target))).path


class Images:
    """An engine's root filesystem images.

    The synchronous version of `AsyncImages`.
    """

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
        """See `AsyncImages.build`. ``on_progress`` runs on squib's thread."""
        return self._portal.run(self._images.build(runtime, rebuild=rebuild, on_progress=on_progress))

    def remove(self, name: str) -> None:
        """See `AsyncImages.remove`."""
        self._portal.run(self._images.remove(name))

    def pack(self, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> Path:
        """See `AsyncImages.pack`."""
        return self._portal.run(self._images.pack(source, target))
