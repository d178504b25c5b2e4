"""``exec``: start commands in a running VM and read their output."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import posixpath
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from dataclasses import dataclass

from squib.core.engine import Engine
from squib.core.guestio.env import sync_env
from squib.core.guestio.stall import watched_response
from squib.core.lifecycle import transitions
from squib.errors import AgentLost, AgentTimeout, AgentUnreachable, SquibError
from squib.guest.agent import AgentClient
from squib.guest.response import Response
from squib.models import ExecRequest, VMState
from squib.protocol import frames
from squib.protocol.errors import to_wire
from squib.store.records import VMRecord, VMSpec

log = logging.getLogger("squib.exec")

_START_TIMEOUT_S = 30.0
_TIMEOUT_GRACE_S = 10.0
"""Added to a command's timeout: a busy guest takes a while to end the command and to send the rest of its output."""


def running_vm(engine: Engine, ref: str, doing: str) -> tuple[VMRecord, AgentClient]:
    """Return a running VM and its agent. Raises `WrongState`, `NotFound`."""
    record = engine.store.get_vm(ref)
    if record.state is not VMState.RUNNING:
        raise transitions.wrong_state(record, doing)
    return record, engine.vm_of(record).agent


def agent_of(engine: Engine, ref: str, doing: str = "run a command") -> AgentClient:
    """Return the agent of a running VM. Raises `WrongState`, `NotFound`."""
    return running_vm(engine, ref, doing)[1]


@dataclass(frozen=True)
class Command:
    """A command in a VM, and one reader of its output."""

    engine: Engine
    vm_id: str
    response: Response
    timeout_s: float | None

    def close(self) -> None:
        """Stop reading.

        A foreground command that still runs is killed. Idempotent.
        """
        self.response.close()


async def start_exec(engine: Engine, ref: str, request: ExecRequest) -> Command:
    """Start a command; read it with `stream`.

    Raises `WrongState`, `ExecError`, `AgentError`, `NotFound`.
    """
    start_timeout_s = min(
        _START_TIMEOUT_S, math.inf if request.timeout_s is None else request.timeout_s + _TIMEOUT_GRACE_S
    )
    response = await within_timeout(_start(engine, ref, request), ref, "start the command", start_timeout_s)
    return Command(engine, engine.store.get_vm(ref).vm_id, response, request.timeout_s)


async def _start(engine: Engine, ref: str, request: ExecRequest) -> Response:
    record, agent = running_vm(engine, ref, "run a command")
    await sync_env(engine, ref)
    return await agent.exec(_with_defaults(request, record.spec))


def _with_defaults(request: ExecRequest, spec: VMSpec) -> ExecRequest:
    """Fill in the VM's user and working directory.

    The guest resolves what is still relative.
    """
    cwd = spec.cwd if request.cwd is None else posixpath.join(spec.cwd or "", request.cwd)
    return request.model_copy(update={"user": request.user or spec.user, "cwd": cwd})


async def within_timeout(work: Awaitable[Response], ref: str, what: str, timeout_s: float | None = None) -> Response:
    """Return the guest's response.

    Raises `AgentTimeout` if it does not arrive within ``timeout_s`` (default 30 s).
    """
    timeout_s = _START_TIMEOUT_S if timeout_s is None else timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            return await work
    except SquibError:
        raise
    except TimeoutError:
        raise AgentTimeout(
            f"the guest did not {what} within {timeout_s:g} s", hint=f"see what it printed: squib logs {ref}"
        ) from None


async def stream(command: Command) -> AsyncIterator[bytes]:
    """Yield the command's frames as bytes.

    Their headers are checked (`squib.guest.output`), their payloads are not.

    If the guest is lost, stalls or sends something else, the last frame is an ``ERROR`` with the reason. Leaving early
    kills a foreground command.
    """
    try:
        async with contextlib.aclosing(receive(command)) as chunks:
            async for chunk in chunks:
                yield chunk
    except AgentUnreachable as error:
        log.info("the output of a command in VM %s broke off: %s", command.vm_id, error.message)
        yield frames.encode_json(frames.FrameKind.ERROR, to_wire(error))


async def receive(command: Command) -> AsyncGenerator[bytes, None]:
    """Yield the command's frames as `stream` does, but raise its errors.

    Raises `AgentUnreachable` if the guest is lost, stalls or sends something else.
    """
    timeout_s = math.inf if command.timeout_s is None else command.timeout_s + _TIMEOUT_GRACE_S
    async with watched_response(command.engine, command.vm_id, command.response, timeout_s=timeout_s) as response:
        try:
            async for chunk in response.stream():
                yield chunk
        except AgentLost as error:
            raise AgentLost(f"the VM ended, or was lost, while the command ran: {error.message}") from error
