"""Guests that have stopped: whoever waits for one is told, and does not wait for ever.

What counts is the time for which we wait for the guest: not that of a slow client or of a paused VM.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from squib.core.engine import Engine
from squib.errors import AgentUnreachable, NotFound
from squib.guest.http2 import Response
from squib.models import VMState

T = TypeVar("T")

SILENCE_S = 60.0
_LOOK_S = 0.5


class _Patience:
    def __init__(self, engine: Engine, vm_id: str) -> None:
        self._engine = engine
        self._vm_id = vm_id
        self._silent_s = 0.0
        self._moved = -1

    async def run_out(self, look: Callable[[], tuple[bool, int]]) -> None:
        """Return when the guest was waited for and did nothing for `SILENCE_S`. ``look`` says whether it is waited for
        now, and a number that grows with all that it does.
        """
        while self._silent_s <= SILENCE_S:
            await asyncio.sleep(_LOOK_S)
            waiting, moved = look()
            if moved != self._moved:
                self._silent_s = 0.0
            elif waiting and not self._is_paused():
                self._silent_s += _LOOK_S
            self._moved = moved

    def _is_paused(self) -> bool:
        try:
            return self._engine.store.get_vm(self._vm_id).state is VMState.PAUSED
        except NotFound:
            return False


@asynccontextmanager
async def answer_of(engine: Engine, vm_id: str, response: Response) -> AsyncIterator[Response]:
    """An answer whose reader gets `AgentUnreachable` if the guest is silent for too long. It is closed with the
    block.
    """

    async def watch() -> None:
        await _Patience(engine, vm_id).run_out(lambda: (response.waiting, response.received_bytes))
        response.give_up(_silent())

    watching = asyncio.create_task(watch(), name=f"silence of {vm_id}")
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
    watching = asyncio.create_task(_Patience(engine, vm_id).run_out(feeding.look), name=f"silence of {vm_id}")
    try:
        await asyncio.wait({sending, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not sending.done():
            raise _silent()
        return sending.result()
    finally:
        watching.cancel()
        if not sending.done():
            sending.cancel()
            await asyncio.wait({sending})


def _silent() -> AgentUnreachable:
    return AgentUnreachable(f"the guest was silent for {SILENCE_S:g} s")
