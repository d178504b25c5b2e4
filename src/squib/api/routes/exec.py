"""``/v1/vms/{ref}/exec`` and ``/processes``: commands."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from squib import frames
from squib.api.context import EngineDep, Ref
from squib.api.schema import SignalRequest
from squib.core import exec
from squib.models import ExecRequest

router = APIRouter(prefix="/vms/{ref}", tags=["exec"])

ProcessId = Annotated[str, Path(pattern=r"^p[0-9]{1,18}$")]


class _CommandResponse(StreamingResponse):
    """The output of a command, which is killed even if the client has left before there was any."""

    def __init__(self, command: exec.Command) -> None:
        super().__init__(exec.stream(command), media_type=frames.CONTENT_TYPE)
        self._command = command

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._command.close()


@router.post("/exec", response_class=StreamingResponse, responses={200: {"content": {frames.CONTENT_TYPE: {}}}})
async def run(engine: EngineDep, ref: Ref, body: ExecRequest) -> StreamingResponse:
    """Run a command and stream its output as frames (protocol/agent.md). If the client goes away, the command is
    killed.
    """
    return _CommandResponse(await exec.start_exec(engine, ref, body))


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
