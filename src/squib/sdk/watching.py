"""Watching a guest directory for changes: `AsyncWatch` and `Watch`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from squib.models import FileEvent
from squib.protocol.guestfiles import parse_event
from squib.sdk.portal import Portal
from squib.sdk.transfer.chunks import Resumable
from squib.undo import AsyncUndo

_NO_EVENTS = ("ready", "idle")

Lines = AsyncGenerator[dict[str, Any], None]


class AsyncWatch:
    """An asynchronous iterator of `FileEvent`; see `AsyncFiles.watch`.

    The watch starts when its ``async with`` block is entered, or else when the first event is requested. It ends with
    the block, with `aclose`, or when the directory is removed. Waiting for an event can be cancelled and retried.
    """

    def __init__(self, lines: Lines) -> None:
        self._lines = Resumable(lines)
        self._ready = False

    async def __aenter__(self) -> Self:
        """Start the watch. Every change after this returns is reported."""
        async with AsyncUndo(self.aclose):
            await self.ready()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> FileEvent:
        await self.ready()
        while (line := await self._lines.next()).get("type") == "idle":
            pass
        return parse_event(line)

    async def ready(self) -> None:
        """Wait until the watch is active."""
        while not self._ready:
            self._ready = (await self._lines.next()).get("type") == "ready"

    async def aclose(self) -> None:
        """Stop the watch. Idempotent."""
        await self._lines.aclose()


class Watch:
    """An iterator of `FileEvent`. The synchronous version of `AsyncWatch`.

    The watch is active when the constructor returns.
    """

    def __init__(self, portal: Portal, watch: AsyncWatch) -> None:
        self._portal = portal
        self._watch = watch
        portal.run(watch.__aenter__())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> FileEvent:
        with suppress(StopAsyncIteration):
            return self._portal.run(self._watch.__anext__())
        raise StopIteration

    def close(self) -> None:
        """See `AsyncWatch.aclose`."""
        self._portal.run(self._watch.aclose())
