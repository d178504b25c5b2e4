"""The images in the cache: root filesystems that squib built, one for each runtime."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from squib.artifacts.building import Build, no_progress
from squib.artifacts.cache import Artifact, ArtifactCache
from squib.images.debian import build_rootfs
from squib.images.runtimes import find_runtime
from squib.models import OnProgress
from squib.paths import Home

_ROOTFS = "rootfs.squashfs"


@dataclass(frozen=True)
class Image:
    """A read-only root filesystem. ``digest`` is that of the file at ``path``."""

    name: str
    digest: str
    path: Path
    size_bytes: int
    built_at: datetime


class ImageStore:
    """The images in the cache. Safe to use from several processes."""

    def __init__(self, home: Home) -> None:
        self._cache = ArtifactCache(
            home,
            "image",
            home.images,
            build_hint="squib image build {name}",
            repair_hint="squib image rm {name} && squib image build {name}",
        )

    def list(self) -> list[Image]:
        """All images, by name, without looking at their files."""
        return [_image(artifact) for artifact in self._cache.list()]

    def get(self, ref: str) -> Image:
        """The image of this name or digest, its file untouched since it was stored.

        Raises `NotFound`, `ImageCorrupt`.
        """
        return _image(self._cache.get(ref))

    def verify(self, ref: str) -> Image:
        """As `get`, but every byte is looked at."""
        return _image(self._cache.verify(ref))

    async def ensure(self, runtime_name: str, on_progress: OnProgress = no_progress) -> Image:
        """The image of a runtime, built if it is absent or its recipe has changed.

        Raises `NotFound` for a name that is no runtime, `ToolFailed`, `DependencyMissing`, `DiskFull`, `ImageCorrupt`.
        """
        return await self.build(runtime_name, on_progress)

    async def build(self, name: str, on_progress: OnProgress = no_progress, *, rebuild: bool = False) -> Image:
        """As `ensure`; with ``rebuild``, build it again from the present packages.

        VMs that use the former one keep it, by its digest, until `prune`. Steps: ``waiting for another build``,
        ``bootstrap: …``, ``squashfs``, ``digest``.
        """
        runtime = find_runtime(name)

        async def make(build: Build, target: Path) -> dict[str, str]:
            await build_rootfs(runtime, build, target / _ROOTFS)
            return {}

        return _image(await self._cache.ensure(name, runtime.key, make, on_progress, rebuild=rebuild))

    def remove(self, name: str) -> None:
        """Remove an image. The caller knows that no VM uses it. Raises `NotFound`."""
        self._cache.remove(name)

    def prune(self, *, keep: Collection[str] = ()) -> None:
        """Remove the images that have no name any more, but those in ``keep`` (digests that VMs use)."""
        self._cache.prune(keep=keep)


def _image(artifact: Artifact) -> Image:
    return Image(
        name=artifact.name,
        digest=artifact.digest,
        path=artifact.folder / _ROOTFS,
        size_bytes=artifact.size_bytes,
        built_at=artifact.built_at,
    )
