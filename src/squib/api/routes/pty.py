"""``/v1/vms/{ref}/pty``: a terminal over a WebSocket.

``docs/api.md`` describes the messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any, TypeVar

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from squib.api.context import EngineDep, Ref
from squib.api.schema import ResizeRequest, SignalRequest, TerminalAttach, TerminalInput
from squib.api.validation import describe_validation
from squib.core.engine import Engine
from squib.core.guestio.terminal import (
    Gap,
    InputWriter,
    Output,
    TerminalAttachment,
    attach_terminal,
    start_terminal,
)
from squib.errors import InvalidArgument, SquibError
from squib.models import ExecRequest, PtySize, RequestModel
from squib.protocol.errors import to_wire
from squib.protocol.frames import CommandEnd

router = APIRouter(prefix="/vms/{ref}", tags=["processes"])

_FIRST_MESSAGE_S = 30.0
_LAST_INPUT_S = 5.0
"""How long to keep writing input that a client sent before it closed the connection."""
_ACKNOWLEDGE_S = 0.1
"""How long to wait for a client that does not read acknowledgements."""
_FAILED = 1011
_FIRST_HINT = 'send {"type": "start", "rows": 24, "cols": 80} or {"type": "attach", "id": "p1"}'

M = TypeVar("M", bound=RequestModel)


@router.websocket("/pty")
async def pty(socket: WebSocket, engine: EngineDep, ref: Ref, acknowledge: bool = False) -> None:
    """Serve a terminal. The first message starts one or attaches to one.

    With ``acknowledge``, say how many bytes of input have come, before they are written.
    """
    await socket.accept()
    try:
        try:
            async with contextlib.aclosing(await _open(socket, engine, ref, acknowledge)) as terminal:
                await _connect(socket, terminal, acknowledge)
        except SquibError as error:
            await _send(socket, {"type": "error", "error": to_wire(error)})
            await socket.close(_FAILED)
        else:
            await socket.close()
    except WebSocketDisconnect:
        pass


async def _open(socket: WebSocket, engine: Engine, ref: str, acknowledge: bool) -> TerminalAttachment:
    """Start or attach to the terminal that the first message asks for."""
    try:
        async with asyncio.timeout(_FIRST_MESSAGE_S):
            kind, fields = _control(await _receive(socket))
    except TimeoutError:
        raise InvalidArgument(f"no message has come within {_FIRST_MESSAGE_S:g} s", hint=_FIRST_HINT) from None
    match kind:
        case "start":
            terminal = await start_terminal(engine, ref, _command(fields))
        case "attach":
            size = _size(fields)
            to = _parse(TerminalAttach, fields)
            terminal = await attach_terminal(
                engine, ref, to.id, offset=to.offset, size=_parse(PtySize, size) if size else None
            )
        case _:
            raise InvalidArgument(f"invalid type of the first message: {kind[:40]!r}", hint=_FIRST_HINT)
    try:
        done = "started" if kind == "start" else "attached"
        said: dict[str, object] = {"type": done, "id": terminal.process_id, "pid": terminal.pid}
        await _send(socket, said | ({"acknowledges": True} if acknowledge else {}))
    except WebSocketDisconnect:
        if kind == "start":
            await terminal.kill()  # no client knows its ID
        await terminal.aclose()
        raise
    return terminal


def _command(fields: dict[str, Any]) -> ExecRequest:
    for name in ("stdin", "background", "pty"):
        if name in fields:
            raise InvalidArgument(f"{name}: a terminal has no such field", hint="set the size with rows and cols")
    size = _size(fields)
    if not {"argv", "shell", "login"} & fields.keys():
        fields["login"] = True
    return _parse(ExecRequest, fields | {"background": True, "pty": size})


def _size(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: fields.pop(name) for name in ("rows", "cols") if name in fields}


async def _connect(socket: WebSocket, terminal: TerminalAttachment, acknowledge: bool) -> None:
    """Connect client and terminal until one of them ends.

    Input that the client has sent is still written.
    """
    writer = InputWriter(terminal)
    printing = asyncio.create_task(_print(socket, terminal), name=f"output of {terminal.process_id}")
    listening = asyncio.create_task(
        _listen(socket, terminal, writer, acknowledge), name=f"input of {terminal.process_id}"
    )
    typing = asyncio.create_task(writer.run(), name=f"input writer of {terminal.process_id}")
    tasks = {printing, listening, typing}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if printing.done() and isinstance(printing.exception(), WebSocketDisconnect):
            await asyncio.wait({listening}, timeout=_LAST_INPUT_S)
        if listening.done():
            await writer.end()
            await asyncio.wait({typing}, timeout=_LAST_INPUT_S)
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(printing, listening, typing, return_exceptions=True)
    for end in ends:
        if not isinstance(end, asyncio.CancelledError):
            if end is not None:
                raise end
            return


async def _print(socket: WebSocket, terminal: TerminalAttachment) -> None:
    """Pass output on to the client.

    While the client does not read, nothing is read from the guest.
    """
    async with contextlib.aclosing(terminal.output()) as pieces:
        async for piece in pieces:
            match piece:
                case Output():
                    await socket.send_bytes(piece.data)
                case Gap():
                    await _send(socket, {"type": "offset", "offset": piece.offset})
                case CommandEnd():
                    end = {name: value for name, value in vars(piece).items() if name != "oom_killed" or value}
                    await _send(socket, {"type": "exit"} | end)
                    return


async def _listen(socket: WebSocket, terminal: TerminalAttachment, writer: InputWriter, acknowledge: bool) -> None:
    """Handle the client's messages until it closes the connection.

    Input is acknowledged before it is written: if this engine dies, the client sends again what was not, and nothing
    is written twice.
    """
    while True:
        message = await _receive(socket)
        if isinstance(message, bytes):
            if acknowledge:
                await _acknowledge(socket, len(message))
            await writer.put(message)
            continue
        kind, fields = _control(message)
        match kind:
            case "input":
                await writer.put(_parse(TerminalInput, fields).data.encode("utf-8", "surrogateescape"))
            case "resize":
                await terminal.resize(_parse(ResizeRequest, fields))
            case "signal":
                await terminal.signal(_parse(SignalRequest, fields).signal)
            case _:
                raise InvalidArgument(f"invalid message type {kind[:40]!r}", hint="use input, resize or signal")


async def _acknowledge(socket: WebSocket, size: int) -> None:
    """Say that input has come. A client that does not read must still be able to interrupt its command."""
    sending = asyncio.create_task(_send(socket, {"type": "received", "bytes": size}), name="acknowledge")
    sending.add_done_callback(lambda task: task.cancelled() or task.exception())  # `_receive` raises the same error
    await asyncio.wait({sending}, timeout=_ACKNOWLEDGE_S)


async def _receive(socket: WebSocket) -> bytes | str:
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005))
    data = message.get("bytes")
    return data if isinstance(data, bytes) else str(message.get("text"))


async def _send(socket: WebSocket, message: dict[str, object]) -> None:
    """Send JSON in ASCII: a message may quote bytes that are not UTF-8."""
    await socket.send_text(json.dumps(message))


def _control(message: bytes | str) -> tuple[str, dict[str, Any]]:
    """Return the type of a control message and its other fields."""
    try:
        fields = json.loads(message) if isinstance(message, str) else None
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise InvalidArgument("the control message is not a JSON object", hint=_FIRST_HINT)
    return str(fields.pop("type", "")), fields


def _parse(model: type[M], fields: dict[str, Any]) -> M:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        problems = [problem | {"loc": ("message", *problem["loc"])} for problem in error.errors()]
        raise InvalidArgument(describe_validation(problems)) from None
