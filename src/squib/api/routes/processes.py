"""``/v1/vms/{ref}/processes``: running and ended commands.

Of the commands that have ended, only background commands are kept.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response, StreamingResponse

from squib.api.context import EngineDep, Ref, ascii_json
from squib.api.routes.exec import CommandResponse
from squib.api.schema import ProcessList, ResizeRequest, SignalRequest
from squib.core.guestio import processes
from squib.models import ProcessInfo
from squib.protocol import frames

router = APIRouter(prefix="/vms/{ref}/processes", tags=["processes"])

ProcessId = Annotated[str, Path(pattern=r"^p[0-9]{1,18}$")]
Offset = Annotated[int, Query(ge=0, lt=1 << 63)]


@router.get("", response_model=ProcessList)
async def list_processes(engine: EngineDep, ref: Ref) -> Response:
    """List running commands and ended background commands, oldest first."""
    return ascii_json(ProcessList(processes=await processes.list_processes(engine, ref)))


@router.get("/{process_id}", response_model=ProcessInfo)
async def get(engine: EngineDep, ref: Ref, process_id: ProcessId) -> Response:
    """Describe a command."""
    return ascii_json(await processes.get_process(engine, ref, process_id))


@router.delete("/{process_id}", status_code=204)
async def kill(engine: EngineDep, ref: Ref, process_id: ProcessId) -> None:
    """Kill a command with all its descendants and forget it.

    The response comes when they have ended.
    """
    await processes.kill_process(engine, ref, process_id)


@router.get(
    "/{process_id}/output", response_class=StreamingResponse, responses={200: {"content": {frames.CONTENT_TYPE: {}}}}
)
async def output(
    engine: EngineDep, ref: Ref, process_id: ProcessId, stdout: Offset = 0, stderr: Offset = 0, none: bool = False
) -> StreamingResponse:
    """Attach to a command and stream its output as frames until it ends.

    ``protocol/agent.md`` describes the frames. Output starts at the offsets given, or at the oldest byte that is kept.
    With ``none`` only the end is reported. Disconnecting does not affect the command.
    """
    command = await processes.attach(engine, ref, process_id, stdout=stdout, stderr=stderr, none=none)
    return CommandResponse(command)


@router.post("/{process_id}/stdin")
async def stdin(
    engine: EngineDep, ref: Ref, process_id: ProcessId, request: Request, close: bool = False
) -> dict[str, int]:
    """Write the request body to a command's standard input.

    With ``close``, close it afterwards.
    """
    return {"written": await processes.write_stdin(engine, ref, process_id, request.stream(), close=close)}


@router.post("/{process_id}/signal", status_code=204)
async def signal(engine: EngineDep, ref: Ref, process_id: ProcessId, body: SignalRequest) -> None:
    """Send a signal to a command's process group.

    In a terminal, send it to the foreground process group.
    """
    await processes.send_signal(engine, ref, process_id, body.signal)


@router.post("/{process_id}/resize", status_code=204)
async def resize(engine: EngineDep, ref: Ref, process_id: ProcessId, body: ResizeRequest) -> None:
    """Set the size of a command's terminal."""
    await processes.resize(engine, ref, process_id, body)
