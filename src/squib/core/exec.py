"""``exec``: commands in a running VM."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator

from squib import frames
from squib.core import lifecycle
from squib.core.engine import Engine
from squib.core.pause import running
from squib.errors import AgentUnreachable, SquibError, to_wire
from squib.guest.agent import AgentClient
from squib.guest.http2 import Body, Response
from squib.models import ExecRequest, VMState

log = logging.getLogger("squib.exec")


def agent_of(engine: Engine, ref: str) -> AgentClient:
    """The agent of the VM ``ref``. Raises `WrongState` if it does not run, `NotFound`."""
    record = engine.store.get_vm(ref)
    if record.state is not VMState.RUNNING:
        raise lifecycle.wrong_state(record, "running a command")
    return running(engine, record).agent


async def start_exec(engine: Engine, ref: str, request: ExecRequest) -> Response:
    """Start a command; `stream` reads it. Raises `WrongState`, `ExecError`, `AgentError`, `NotFound`."""
    return await agent_of(engine, ref).exec(request)


async def stream(response: Response) -> AsyncIterator[bytes]:
    """The command's frames as they come, as bytes. The guest's frames are passed on unread: whoever decodes them
    bounds them.

    If the guest is lost, the last frame is an ``ERROR``. Leaving early kills the command.
    """
    async with response:
        with contextlib.suppress(GeneratorExit):
            try:
                async for chunk in response.stream():
                    yield chunk
            except SquibError as error:
                log.info("a command was lost: %s", error.message)
                lost = AgentUnreachable(f"the VM ended, or was lost, while the command ran: {error.message}")
                yield frames.encode_json(frames.FrameKind.ERROR, to_wire(lost))


async def write_stdin(engine: Engine, ref: str, process_id: str, body: Body, *, close: bool) -> int:
    """Feed the standard input of a process; returns the bytes written. Raises `StdinClosed`, `NoSuchProcess` and as
    `start_exec`.
    """
    return await agent_of(engine, ref).write_stdin(process_id, body, close=close)


async def send_signal(engine: Engine, ref: str, process_id: str, signal: int) -> None:
    """Send a signal to a process's group. Raises `NoSuchProcess` and as `start_exec`."""
    await agent_of(engine, ref).signal(process_id, signal)
