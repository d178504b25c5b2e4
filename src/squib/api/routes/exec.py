"""``/v1/vms/{ref}/exec`` and ``/processes``: commands."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import StreamingResponse

from squib import frames
from squib.api.context import EngineDep, Ref
from squib.api.schema import SignalRequest
from squib.core import exec
from squib.models import ExecRequest

router = APIRouter(prefix="/vms/{ref}", tags=["exec"])

ProcessId = Annotated[str, Path(pattern=re.compile(r"^p[0-9]{1,18}$"))]


@router.post("/exec", response_class=StreamingResponse, responses={200: {"content": {frames.CONTENT_TYPE: {}}}})
async def run(engine: EngineDep, ref: Ref, body: ExecRequest) -> StreamingResponse:
    """Run a command and stream its output as frames (protocol/agent.md). If the client goes away, the command is
    killed.
    """
    response = await exec.start_exec(engine, ref, body)
    return StreamingResponse(exec.stream(response), media_type=frames.CONTENT_TYPE)


@router.post("/processes/{process_id}/stdin")
async def stdin(
    engine: EngineDep, ref: Ref, process_id: ProcessId, request: Request, close: bool = False
) -> dict[str, int]:
    """Feed a command's standard input with the body, as it comes; ``close`` closes it afterwards."""
    return {"written": await exec.write_stdin(engine, ref, process_id, request.stream(), close=close)}


@router.post("/processes/{process_id}/signal", status_code=204)
async def signal(engine: EngineDep, ref: Ref, process_id: ProcessId, body: SignalRequest) -> None:
    """Send a signal to a command's process group."""
    await exec.send_signal(engine, ref, process_id, body.signal)
