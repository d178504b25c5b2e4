"""The cache's images: root filesystems that squib builds, one per runtime."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from squib.artifacts.building import Build, no_progress
from squib.artifacts.cache import Artifact, ArtifactCache, Entry
from squib.images.debian import build_rootfs
from squib.images.runtimes import find_runtime
from squib.models import OnProgress
from squib.paths import Home

_ROOTFS = "rootfs.squashfs"


@dataclass(frozen=True)
class Image:
    """A read-only root filesystem.

    ``digest`` is the digest of the file at ``path``.
    """

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
            repair_hint="squib image build {name} --rebuild",
        )

    def list(self) -> list[Entry]:
        """List all images by name, damaged ones too, then unnamed ones.

        Files are not hashed.
        """
        return self._cache.list()

    def get(self, ref: str) -> Image:
        """Return the image with this name or digest.

        Its file must match its stamp.

        Raises `NotFound`, `ImageCorrupt`.
        """
        return _image(self._cache.get(ref))

    def verify(self, ref: str) -> Image:
        """Return the image as `get` does, but hash its file."""
        return _image(self._cache.verify(ref))

    def content(self, digest: str) -> Artifact:
        """Return the files of the image with this digest. Raises `NotFound`, `ImageCorrupt`."""
        return self._cache.get(digest)

    def add(self, digest: str, content: Path, info: dict[str, str]) -> None:
        """Store an image that was built elsewhere; its directory is taken.

        Raises `ImageCorrupt` if it is not the image with this digest.
        """
        self._cache.add(digest, content, info)

    def named_digests(self) -> set[str]:
        """Return the digests of the images that have a name."""
        return self._cache.named_digests()

    async def ensure(self, runtime_name: str, on_progress: OnProgress = no_progress) -> Image:
        """Return a runtime's image; build it if absent or of another recipe.

        Raises `NotFound` for an unknown runtime, `ToolFailed`, `DependencyMissing`, `DiskFull`, `ImageCorrupt`.
        """
        return await self.build(runtime_name, on_progress)

    async def build(self, name: str, on_progress: OnProgress = no_progress, *, rebuild: bool = False) -> Image:
        """Return a runtime's image as `ensure` does, or build it again.

        With ``rebuild``, it is built again from today's packages. The former image stays, under its digest, until
        `prune`. Steps: ``waiting for another build``, ``bootstrap: …``, ``squashfs``, ``digest``.

        Raises what `ensure` raises.
        """
        runtime = find_runtime(name)

        async def make(build: Build, target: Path) -> dict[str, str]:
            await build_rootfs(runtime, build, target / _ROOTFS)
            return {}

        return _image(await self._cache.ensure(name, runtime.key, make, on_progress, rebuild=rebuild))

    def remove(self, ref: str) -> None:
        """Remove the image with this name or digest.

        The caller checks that no VM uses it.

        Raises `NotFound`.
        """
        self._cache.remove(ref)

    def prune(self, *, keep: Collection[str] = ()) -> None:
        """Remove unnamed images whose digests are not in ``keep``."""
        self._cache.prune(keep=keep)


def _image(artifact: Artifact) -> Image:
    return Image(
        name=artifact.name,
        digest=artifact.digest,
        path=artifact.folder / _ROOTFS,
        size_bytes=artifact.size_bytes,
        built_at=artifact.built_at,
    )
