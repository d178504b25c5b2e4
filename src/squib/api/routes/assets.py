"""``/v1/images`` and ``/v1/kernels``: what VMs are made from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from fastapi import APIRouter
from starlette.responses import StreamingResponse

from squib.api.context import EngineDep, Ref
from squib.api.schema import BuildEvent, BuildRequest, ImageList, KernelBuildRequest, KernelList, WireError
from squib.core import assets
from squib.errors import SquibError, to_wire
from squib.models import OnProgress, Progress

router = APIRouter(tags=["images"])

NDJSON = "application/x-ndjson"


@router.get("/images")
async def list_images(engine: EngineDep) -> ImageList:
    """All images in the cache."""
    return ImageList(images=assets.list_images(engine))


@router.post("/images", response_class=StreamingResponse, responses={200: {"content": {NDJSON: {}}}})
async def build_image(engine: EngineDep, body: BuildRequest) -> StreamingResponse:
    """Build an image. Answers with lines of `BuildEvent`; the last holds the image or the error."""

    async def work(on_progress: OnProgress) -> BuildEvent:
        image = await assets.build_image(engine, body.name, rebuild=body.rebuild, on_progress=on_progress)
        return BuildEvent(image=image)

    return StreamingResponse(_events(work), media_type=NDJSON)


@router.delete("/images/{ref}", status_code=204)
async def remove_image(engine: EngineDep, ref: Ref) -> None:
    """Remove an image that no VM uses."""
    assets.remove_image(engine, ref)


@router.get("/kernels")
async def list_kernels(engine: EngineDep) -> KernelList:
    """All kernels in the cache."""
    return KernelList(kernels=assets.list_kernels(engine))


@router.post("/kernels", response_class=StreamingResponse, responses={200: {"content": {NDJSON: {}}}})
async def build_kernel(engine: EngineDep, body: KernelBuildRequest | None = None) -> StreamingResponse:
    """Fetch the kernel if it is not there. Answers as the build of an image."""
    rebuild = body is not None and body.rebuild

    async def work(on_progress: OnProgress) -> BuildEvent:
        return BuildEvent(kernel=await assets.build_kernel(engine, rebuild=rebuild, on_progress=on_progress))

    return StreamingResponse(_events(work), media_type=NDJSON)


async def _events(work: Callable[[OnProgress], Awaitable[BuildEvent]]) -> AsyncIterator[str]:
    """Lines with the progress of ``work`` and, last, its result. The work is cancelled if nobody reads on."""
    steps: asyncio.Queue[Progress | None] = asyncio.Queue()

    async def run() -> BuildEvent:
        try:
            return await work(steps.put_nowait)
        except SquibError as error:
            return BuildEvent(error=WireError(**to_wire(error)))
        finally:
            steps.put_nowait(None)

    task = asyncio.create_task(run())
    try:
        while step := await steps.get():
            yield _line(BuildEvent(progress=step))
        yield _line(await task)
    finally:
        task.cancel()


def _line(event: BuildEvent) -> str:
    return event.model_dump_json(exclude_none=True) + "\n"
