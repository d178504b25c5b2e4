"""Undo a step if a later step fails, is cancelled or is interrupted; or do it to its end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


class Undo:
    """Call ``undo`` if the block fails."""

    def __init__(self, undo: Callable[[], object]) -> None:
        self._undo = undo

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            self._undo()


class AsyncUndo:
    """Await ``undo()`` if the block fails."""

    def __init__(self, undo: Callable[[], Awaitable[object]]) -> None:
        self._undo = undo

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            await self._undo()


async def to_its_end(running: asyncio.Future[T], on_cancel: Callable[[], None] = lambda: None) -> T:
    """Wait for ``running``.

    On cancellation, call ``on_cancel`` and still wait until it finishes, however often it is cancelled.
    """
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        on_cancel()
        await _until_done(running)
        running.exception()
        raise


async def _until_done(running: asyncio.Future[T]) -> None:
    from anyio import CancelScope  # it takes long to import, and few programs need it

    with CancelScope(shield=True):  # anyio cancels a task again at each step
        while not running.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({running})


async def in_thread(work: Callable[..., T], *args: object) -> T:
    """Run ``work`` in a thread. If this is cancelled, still wait until the thread has finished."""
    return await to_its_end(asyncio.ensure_future(asyncio.to_thread(work, *args)))
