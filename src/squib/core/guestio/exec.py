"""``exec``: starting commands in a running VM, and reading their output."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from dataclasses import dataclass

from squib.core.engine import Engine
from squib.core.guestio.env import hand_over_env
from squib.core.guestio.stall import answer_of
from squib.core.lifecycle import transitions
from squib.errors import AgentUnreachable, SquibError, to_wire
from squib.guest.agent import AgentClient
from squib.guest.http2 import Response
from squib.models import ExecRequest, VMState
from squib.protocol import frames

log = logging.getLogger("squib.exec")

_START_TIMEOUT_S = 30.0
_TIMEOUT_GRACE_S = 10.0
"""Beyond a command's timeout, for a busy guest to end it and to send the rest of its output."""


def agent_of(engine: Engine, ref: str, doing: str = "run a command") -> AgentClient:
    """The agent of the VM ``ref``. Raises `WrongState` if it does not run, `NotFound`."""
    record = engine.store.get_vm(ref)
    if record.state is not VMState.RUNNING:
        raise transitions.wrong_state(record, doing)
    return engine.vm_of(record).agent


@dataclass(frozen=True)
class Command:
    """A command in the VM ``vm_id``, and one reader of its output."""

    engine: Engine
    vm_id: str
    response: Response
    timeout_s: float | None

    def close(self) -> None:
        """Leave it. In the foreground it is killed, if it has not ended. Idempotent."""
        self.response.close()


async def start_exec(engine: Engine, ref: str, request: ExecRequest) -> Command:
    """Start a command; `stream` reads it. Raises `WrongState`, `ExecError`, `AgentError`, `NotFound`."""
    patience_s = min(_START_TIMEOUT_S, math.inf if request.timeout_s is None else request.timeout_s + _TIMEOUT_GRACE_S)
    response = await in_time(_start(engine, ref, request), ref, "start the command", patience_s)
    return Command(engine, engine.store.get_vm(ref).vm_id, response, request.timeout_s)


async def _start(engine: Engine, ref: str, request: ExecRequest) -> Response:
    agent = agent_of(engine, ref)
    await hand_over_env(engine, ref)
    return await agent.exec(request)


async def in_time(work: Awaitable[Response], ref: str, what: str, patience_s: float | None = None) -> Response:
    """What the guest answers if it does so in time. Raises `AgentUnreachable`."""
    patience_s = _START_TIMEOUT_S if patience_s is None else patience_s
    try:
        async with asyncio.timeout(patience_s):
            return await work
    except TimeoutError:
        raise AgentUnreachable(
            f"the guest did not {what} within {patience_s:g} s", hint=f"does it hang? squib logs {ref}"
        ) from None


async def stream(command: Command) -> AsyncIterator[bytes]:
    """The command's frames as they come, as bytes. The guest's frames are passed on unread: whoever decodes them
    bounds them.

    If the guest is lost, the last frame is an ``ERROR``. Leaving early kills a command in the foreground.
    """
    try:
        async with contextlib.aclosing(receive(command)) as chunks:
            async for chunk in chunks:
                yield chunk
    except AgentUnreachable as lost:
        log.info("a command was lost: %s", lost.message)
        yield frames.encode_json(frames.FrameKind.ERROR, to_wire(lost))


async def receive(command: Command) -> AsyncGenerator[bytes, None]:
    """What the guest sends, as `stream`. Raises `AgentUnreachable` if the guest is lost."""
    within_s = math.inf if command.timeout_s is None else command.timeout_s + _TIMEOUT_GRACE_S
    async with answer_of(command.engine, command.vm_id, command.response, within_s=within_s) as response:
        try:
            async for chunk in response.stream():
                yield chunk
        except SquibError as error:
            raise AgentUnreachable(f"the VM ended, or was lost, while the command ran: {error.message}") from error
