"""Undo a step if a later step fails, is cancelled or is interrupted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable


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
