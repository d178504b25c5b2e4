"""Images and kernels in the cache: list, build, remove. What a VM uses stays."""

from __future__ import annotations

from squib.core.engine import Engine
from squib.errors import Conflict
from squib.images.store import Image
from squib.kernels.catalog import Kernel
from squib.models import ImageInfo, KernelInfo, OnProgress


def list_images(engine: Engine) -> list[ImageInfo]:
    """All images, by name."""
    return [_describe_image(engine, image) for image in engine.images.list()]


def list_kernels(engine: Engine) -> list[KernelInfo]:
    """All kernels of squib's own."""
    return [_describe_kernel(kernel) for kernel in engine.kernels.list()]


async def build_image(engine: Engine, name: str, *, rebuild: bool, on_progress: OnProgress) -> ImageInfo:
    """Build a runtime's image, or with ``rebuild`` build it again; VMs that use the former one keep it.

    Raises `NotFound` for a name that is no runtime, `ToolFailed`, `DependencyMissing`, `DiskFull`.
    """
    image = await engine.images.build(name, on_progress, rebuild=rebuild)
    engine.images.prune(keep={str(record.spec.rootfs) for record in engine.store.list_vms()})
    return _describe_image(engine, image)


async def build_kernel(engine: Engine, *, rebuild: bool, on_progress: OnProgress) -> KernelInfo:
    """Fetch and prepare the kernel, if it is not in the cache or with ``rebuild``. Raises as `build_image`."""
    return _describe_kernel(await engine.kernels.ensure(on_progress, rebuild=rebuild))


def remove_image(engine: Engine, name: str) -> None:
    """Remove an image from the cache. Raises `NotFound`, `Conflict` if a VM uses it."""
    image = next((image for image in engine.images.list() if image.name == name), None)
    if image and (users := _users(engine, image.digest)):
        raise Conflict(f"image {name} is used by {', '.join(users)}", hint=f"squib rm {' '.join(users)}")
    engine.images.remove(name)
    engine.images.prune(keep={str(record.spec.rootfs) for record in engine.store.list_vms()})


def _describe_image(engine: Engine, image: Image) -> ImageInfo:
    return ImageInfo(
        name=image.name,
        digest=image.digest,
        size_bytes=image.size_bytes,
        built_at=image.built_at,
        in_use_by=_users(engine, image.digest),
    )


def _users(engine: Engine, digest: str) -> list[str]:
    return [record.name for record in engine.store.list_vms() if str(record.spec.rootfs) == digest]


def _describe_kernel(kernel: Kernel) -> KernelInfo:
    return KernelInfo(
        version=kernel.version, digest=kernel.digest, size_bytes=kernel.size_bytes, built_at=kernel.built_at
    )
