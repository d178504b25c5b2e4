"""``/v1/images`` and ``/v1/kernels``: what VMs boot from."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import StreamingResponse

from squib.api.context import EngineDep, KernelPath, Ref
from squib.api.schema import BuildRequest, ImageList, KernelBuildRequest, KernelList, ProgressEvent
from squib.api.streams import NDJSON, ProgressResponse
from squib.core import assets
from squib.models import OnProgress

router = APIRouter(tags=["images"])


@router.get("/images")
async def list_images(engine: EngineDep) -> ImageList:
    """List the images in the cache."""
    return ImageList(images=assets.list_images(engine))


@router.post("/images", response_class=StreamingResponse, responses={200: {"content": {NDJSON: {}}}})
async def build_image(engine: EngineDep, body: BuildRequest) -> StreamingResponse:
    """Build an image.

    The response has a `ProgressEvent` a line; the last one holds the image or the error. If the client disconnects
    earlier, the build is cancelled.
    """

    async def work(on_progress: OnProgress) -> ProgressEvent:
        image = await assets.build_image(engine, body.name, rebuild=body.rebuild, on_progress=on_progress)
        return ProgressEvent(image=image)

    return ProgressResponse(work)


@router.delete("/images/{ref}", status_code=204)
async def remove_image(engine: EngineDep, ref: Ref) -> None:
    """Remove an image that no VM uses."""
    assets.remove_image(engine, ref)


@router.get("/kernels")
async def list_kernels(engine: EngineDep) -> KernelList:
    """List the kernels in the cache."""
    return KernelList(kernels=assets.list_kernels(engine))


@router.delete("/kernels/{kernel}", status_code=204)
async def remove_kernel(engine: EngineDep, kernel: KernelPath) -> None:
    """Remove a kernel that no VM uses from the cache."""
    assets.remove_kernel(engine, kernel)


@router.post("/kernels", response_class=StreamingResponse, responses={200: {"content": {NDJSON: {}}}})
async def build_kernel(engine: EngineDep, body: KernelBuildRequest | None = None) -> StreamingResponse:
    """Fetch and unpack the kernel if it is not in the cache.

    The response is like the one of an image build; its last line holds the kernel or the error.
    """
    rebuild = body is not None and body.rebuild

    async def work(on_progress: OnProgress) -> ProgressEvent:
        return ProgressEvent(kernel=await assets.build_kernel(engine, rebuild=rebuild, on_progress=on_progress))

    return ProgressResponse(work)
