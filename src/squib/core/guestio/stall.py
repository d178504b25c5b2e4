"""Guests that have stopped: whoever waits for one is told, and does not wait for ever.

What counts is the time for which we wait for the guest: not that of a slow client or of a paused VM.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from squib.core.engine import Engine
from squib.errors import AgentUnreachable, NotFound
from squib.guest.http2 import Response
from squib.models import VMState

T = TypeVar("T")

STALL_TIMEOUT_S = 60.0
_LOOK_S = 0.5


async def _patience(
    engine: Engine, vm_id: str, look: Callable[[], tuple[bool, int]], within_s: float = math.inf
) -> AgentUnreachable:
    """Return the error when the guest has kept us waiting: idle for `STALL_TIMEOUT_S`, or ``within_s`` in total.

    ``look`` returns whether we wait for the guest now, and a counter of its activity.
    """
    waited_s = silent_s = 0.0
    last = -1
    while True:
        await asyncio.sleep(_LOOK_S)
        waiting, moved = look()
        if moved != last:
            last, silent_s = moved, 0.0
        if waiting and not is_paused(engine, vm_id):
            silent_s += _LOOK_S
            waited_s += _LOOK_S
        if silent_s > STALL_TIMEOUT_S:
            return AgentUnreachable(f"the guest was silent for {STALL_TIMEOUT_S:g} s")
        if waited_s > within_s:
            return AgentUnreachable(f"the guest did not end it within {within_s:g} s")


def is_paused(engine: Engine, vm_id: str) -> bool:
    """Whether a VM is paused, so that its guest does not answer."""
    try:
        return engine.store.get_vm(vm_id).state is VMState.PAUSED
    except NotFound:
        return False


@asynccontextmanager
async def answer_of(
    engine: Engine, vm_id: str, response: Response, *, within_s: float = math.inf
) -> AsyncIterator[Response]:
    """An answer whose reader gets `AgentUnreachable` if the guest is silent for too long, or is waited for longer than
    ``within_s``. It is closed with the block.
    """

    async def watch() -> None:
        response.give_up(await _patience(engine, vm_id, lambda: (response.waiting, response.received_bytes), within_s))

    watching = asyncio.create_task(watch(), name=f"stall watch of {vm_id}")
    try:
        async with response:
            yield response
    finally:
        watching.cancel()


class Feeding:
    """A body on its way into a guest."""

    def __init__(self, body: AsyncIterator[bytes]) -> None:
        self._body = body
        self._taken = 0
        self._waiting = True

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self._waiting = False
        async for chunk in self._body:
            self._waiting = True
            yield chunk
            self._taken += len(chunk)
            self._waiting = False
        self._waiting = True

    def look(self) -> tuple[bool, int]:
        """Whether we wait for the guest, and how much it has taken."""
        return self._waiting, self._taken


async def fed(engine: Engine, vm_id: str, body: AsyncIterator[bytes], send: Callable[[Feeding], Awaitable[T]]) -> T:
    """What ``send`` makes of ``body``. Raises `AgentUnreachable` if the guest takes nothing, or does not answer, for
    too long; what was sent is then taken back, as when ``body`` raises.
    """
    feeding = Feeding(body)
    sending = asyncio.ensure_future(send(feeding))
    watching = asyncio.create_task(_patience(engine, vm_id, feeding.look), name=f"stall watch of {vm_id}")
    try:
        await asyncio.wait({sending, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not sending.done():
            raise watching.result()
        return sending.result()
    finally:
        watching.cancel()
        if not sending.done():
            sending.cancel()
            await asyncio.wait({sending})
