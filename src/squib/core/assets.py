"""Images and kernels in the cache: list, build, remove.

Files that a VM uses are kept.
"""

from __future__ import annotations

from squib.artifacts.cache import Entry
from squib.core import references
from squib.core.engine import Engine
from squib.errors import Conflict, InvalidArgument, NotFound
from squib.models import ImageInfo, KernelInfo, OnProgress

_MIN_PREFIX_DIGITS = 6


def list_images(engine: Engine) -> list[ImageInfo]:
    """List all images by name, damaged ones too, then former ones in use.

    A former image has no name and stays as long as a VM uses it.
    """
    return [_describe_image(engine, entry) for entry in engine.images.list()]


def list_kernels(engine: Engine) -> list[KernelInfo]:
    """List squib's kernel, damaged or not, then former ones that VMs use."""
    return [_describe_kernel(engine, entry) for entry in engine.kernels.list() if entry.digest]


async def build_image(engine: Engine, name: str, *, rebuild: bool, on_progress: OnProgress) -> ImageInfo:
    """Build a runtime's image if the cache has none, or with ``rebuild``.

    VMs keep the former image.

    Raises `NotFound` for an unknown runtime, `ImageCorrupt`, `ToolFailed`, `DependencyMissing`, `DiskFull`.
    """
    image = await engine.images.build(name, on_progress, rebuild=rebuild)
    references.prune(engine)
    return _describe_image(engine, Entry(image.name, image.digest, image.size_bytes, image.built_at, {}))


async def build_kernel(engine: Engine, *, rebuild: bool, on_progress: OnProgress) -> KernelInfo:
    """Fetch and prepare the kernel if the cache has none, or with ``rebuild``.

    VMs keep the former one.

    Raises as `build_image`.
    """
    kernel = await engine.kernels.ensure(on_progress, rebuild=rebuild)
    references.prune(engine)
    facts = {"version": kernel.version}
    return _describe_kernel(engine, Entry("", kernel.digest, kernel.size_bytes, kernel.built_at, facts))


def remove_image(engine: Engine, name: str) -> None:
    """Remove an image from the cache, damaged or not.

    Raises `NotFound`, `Conflict` if a VM uses it.
    """
    for entry in engine.images.list():
        if entry.name == name:
            _check_unused(engine, f"image {name}", entry.digest)
    engine.images.remove(name)
    references.prune(engine)


def remove_kernel(engine: Engine, ref: str) -> None:
    """Remove a kernel from the cache by its version or digest.

    A digest may be shortened to its first 6 or more digits.

    Raises `NotFound`, `InvalidArgument` if several kernels match, `Conflict` if a VM uses it.
    """
    found = {entry.digest for entry in engine.kernels.list() if _matches(entry, ref)}
    if not found:
        raise NotFound(f"no kernel has the version or digest {ref}", hint="squib kernel ls")
    if len(found) > 1:
        raise InvalidArgument(
            f"{len(found)} kernels match {ref}", hint="use a digest: squib kernel ls --json shows them"
        )
    [digest] = found
    _check_unused(engine, f"kernel {ref}", digest)
    engine.kernels.remove(digest)
    references.prune(engine)


def _matches(entry: Entry, ref: str) -> bool:
    digits = ref.removeprefix("sha256:")
    by_digest = len(digits) >= _MIN_PREFIX_DIGITS and entry.digest.startswith(f"sha256:{digits}")
    return by_digest or entry.info.get("version") == ref


def _check_unused(engine: Engine, what: str, digest: str) -> None:
    if users := references.users_of(engine, digest):
        raise Conflict(f"{what} is used by {', '.join(users)}", hint=f"squib rm {' '.join(users)}")


def _describe_image(engine: Engine, entry: Entry) -> ImageInfo:
    return ImageInfo(
        name=entry.name,
        digest=entry.digest,
        size_bytes=entry.size_bytes,
        built_at=entry.built_at,
        in_use_by=references.users_of(engine, entry.digest),
        damage=entry.damage,
    )


def _describe_kernel(engine: Engine, entry: Entry) -> KernelInfo:
    return KernelInfo(
        version=entry.info.get("version", ""),
        digest=entry.digest,
        size_bytes=entry.size_bytes,
        built_at=entry.built_at,
        in_use_by=references.users_of(engine, entry.digest),
        damage=entry.damage,
    )
