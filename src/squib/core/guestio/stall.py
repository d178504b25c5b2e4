"""The stall watchdog: fails requests to guests that make no progress.

Without it, a caller could wait for ever. Only the time for which the engine waits for the guest counts: not the time of
a slow client or of a paused VM.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from squib.core.engine import Engine
from squib.errors import AgentTimeout, NotFound
from squib.guest.response import Response
from squib.models import VMState

T = TypeVar("T")

STALL_TIMEOUT_S = 60.0
_POLL_S = 0.5


@dataclass(frozen=True)
class Progress:
    """A transfer between engine and guest at one moment."""

    waiting: bool
    """Whether the engine waits for the guest."""
    count: int
    """Changes whenever the guest does something."""


async def _wait_for_stall(
    engine: Engine, vm_id: str, progress: Callable[[], Progress], timeout_s: float = math.inf
) -> AgentTimeout:
    """Wait until the guest stalls or times out, and return the error.

    The guest stalls after `STALL_TIMEOUT_S` without progress. It times out when the engine has waited for it for
    ``timeout_s`` in total.
    """
    waited_s = stalled_s = 0.0
    count = -1
    while True:
        await asyncio.sleep(_POLL_S)
        now = progress()
        if now.count != count:
            count, stalled_s = now.count, 0.0
        if now.waiting and not is_paused(engine, vm_id):
            stalled_s += _POLL_S
            waited_s += _POLL_S
        if stalled_s > STALL_TIMEOUT_S:
            return AgentTimeout(f"the guest made no progress for {STALL_TIMEOUT_S:g} s")
        if waited_s > timeout_s:
            return AgentTimeout(f"the guest did not end the command within {timeout_s:g} s")


def is_paused(engine: Engine, vm_id: str) -> bool:
    """Return whether a VM is paused, so that its guest does not respond."""
    try:
        return engine.store.get_vm(vm_id).state is VMState.PAUSED
    except NotFound:
        return False


@asynccontextmanager
async def watched_response(
    engine: Engine, vm_id: str, response: Response, *, timeout_s: float = math.inf
) -> AsyncIterator[Response]:
    """Watch a response while the block runs, and close it after.

    Its reader gets `AgentTimeout` if the guest stalls, or is waited for longer than ``timeout_s`` in total.
    """

    async def watch() -> None:
        def progress() -> Progress:
            return Progress(response.waiting, response.received_bytes)

        response.give_up(await _wait_for_stall(engine, vm_id, progress, timeout_s))

    watchdog = asyncio.create_task(watch(), name=f"stall watchdog of {vm_id}")
    try:
        async with response:
            yield response
    finally:
        watchdog.cancel()


class WatchedUpload:
    """A body on its way into a guest. Iterate it to send it."""

    def __init__(self, body: AsyncIterator[bytes]) -> None:
        self._body = body
        self._taken_bytes = 0
        self._waiting = True

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self._waiting = False
        async for chunk in self._body:
            self._waiting = True
            yield chunk
            self._taken_bytes += len(chunk)
            self._waiting = False
        self._waiting = True

    def progress(self) -> Progress:
        """Return the bytes taken, and whether the guest is waited for."""
        return Progress(self._waiting, self._taken_bytes)


async def watch_upload(
    engine: Engine, vm_id: str, body: AsyncIterator[bytes], send: Callable[[WatchedUpload], Awaitable[T]]
) -> T:
    """Return what ``send`` returns for ``body``.

    Raises `AgentTimeout` if the guest stalls while it takes the body or before it responds. The upload is then
    cancelled, as when ``body`` raises.
    """
    upload = WatchedUpload(body)
    sending = asyncio.ensure_future(send(upload))
    watchdog = asyncio.create_task(_wait_for_stall(engine, vm_id, upload.progress), name=f"stall watchdog of {vm_id}")
    try:
        await asyncio.wait({sending, watchdog}, return_when=asyncio.FIRST_COMPLETED)
        if not sending.done():
            raise watchdog.result()
        return sending.result()
    finally:
        watchdog.cancel()
        if not sending.done():
            sending.cancel()
            await asyncio.wait({sending})
