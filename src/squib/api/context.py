"""How routes reach the engine and notice that a client disconnects."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Path, Request
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.responses import Response

from squib.core.engine import Engine
from squib.models import Name, ResponseModel
from squib.models.assets import KernelRef

T = TypeVar("T")


async def _engine(connection: HTTPConnection) -> Engine:
    engine = connection.app.state.engine
    assert isinstance(engine, Engine)
    return engine


EngineDep = Annotated[Engine, Depends(_engine)]
Ref = Annotated[Name, Path(description="the name or ID of a VM or a snapshot, or the ID of a template")]
KernelPath = Annotated[KernelRef, Path(description="a kernel's version or digest")]


def ascii_json(value: ResponseModel) -> Response:
    """Return a JSON response in ASCII.

    The value may hold bytes that are not UTF-8, as lone surrogates.
    """
    body = json.dumps(value.model_dump(mode="json")).encode("ascii")
    return Response(body, media_type="application/json")


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Run ``work``.

    If the client disconnects first, cancel it and wait until it has cleaned up.

    Raises `ClientDisconnect` then.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
    if task.cancelled():
        raise ClientDisconnect
    return task.result()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
