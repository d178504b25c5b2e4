"""``/v1/vms/{ref}/logs`` and ``/v1/engine/logs``: consoles and the engine's log, as the bytes that were written."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response, StreamingResponse

from squib.api.context import EngineDep, Ref
from squib.core.guestio import logs

router = APIRouter(tags=["logs"])

_TEXT = "text/plain"
Lines = Annotated[int | None, Query(ge=0, description="only the last lines; by default all that is kept")]
Follow = Annotated[bool, Query(description="go on with what comes")]


@router.get("/vms/{ref}/logs", response_class=Response, responses={200: {"content": {_TEXT: {}}}})
async def console(engine: EngineDep, ref: Ref, lines: Lines = None, follow: Follow = False) -> Response:
    """The console of a VM. With ``follow`` the answer ends when the VM does. The guest may have written anything."""
    if follow:
        return StreamingResponse(logs.follow_console(engine, ref, lines=lines), media_type=_TEXT)
    return Response(logs.console(engine, ref, lines=lines), media_type=_TEXT)


@router.get("/engine/logs", response_class=Response, responses={200: {"content": {_TEXT: {}}}})
async def engine_log(engine: EngineDep, lines: Lines = None, follow: Follow = False) -> Response:
    """The engine's log. With ``follow`` the answer does not end."""
    if follow:
        return StreamingResponse(logs.follow_engine_log(engine, lines=lines), media_type=_TEXT)
    return Response(logs.engine_log(engine, lines=lines), media_type=_TEXT)
