"""``/v1/vms/{ref}/exec``: run commands."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from squib.api.context import EngineDep, Ref
from squib.core.guestio import exec
from squib.models import ExecRequest
from squib.protocol import frames

router = APIRouter(prefix="/vms/{ref}", tags=["exec"])


class CommandResponse(StreamingResponse):
    """Stream a command's output.

    The command is closed at the end, even if the client disconnects before there is output. This kills a foreground
    command.
    """

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
    """Run a command and stream its output as frames (``protocol/agent.md``).

    If the client disconnects, a foreground command is killed. A background command keeps running.
    """
    return CommandResponse(await exec.start_exec(engine, ref, body))
