"""``/v1/vms/{ref}/logs`` and ``/v1/engine/logs``: logs as raw bytes.

The first is a VM's console log, the second the engine's log.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response, StreamingResponse

from squib.api.context import EngineDep, Ref
from squib.core.guestio import logs

router = APIRouter(tags=["logs"])

_TEXT = "text/plain"
Lines = Annotated[
    int | None, Query(ge=0, description="return only this many last lines; by default everything that is kept")
]
Follow = Annotated[bool, Query(description="keep streaming new output")]


@router.get("/vms/{ref}/logs", response_class=Response, responses={200: {"content": {_TEXT: {}}}})
async def console(engine: EngineDep, ref: Ref, lines: Lines = None, follow: Follow = False) -> Response:
    """Return a VM's console.

    With ``follow`` the response ends when the VM stops.

    The guest controls the content: do not print it to a terminal unfiltered.
    """
    if follow:
        return StreamingResponse(logs.follow_console(engine, ref, lines=lines), media_type=_TEXT)
    return Response(logs.console(engine, ref, lines=lines), media_type=_TEXT)


@router.get("/engine/logs", response_class=Response, responses={200: {"content": {_TEXT: {}}}})
async def engine_log(engine: EngineDep, lines: Lines = None, follow: Follow = False) -> Response:
    """Return the engine's log. With ``follow`` the response does not end."""
    if follow:
        return StreamingResponse(logs.follow_engine_log(engine, lines=lines), media_type=_TEXT)
    return Response(logs.engine_log(engine, lines=lines), media_type=_TEXT)
