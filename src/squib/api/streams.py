"""Streamed responses: bytes, and progress of long operations."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from squib.api.schema import ProgressEvent
from squib.errors import SquibError
from squib.models import OnProgress, Progress, WireError
from squib.protocol.errors import to_wire

log = logging.getLogger("squib.streams")

NDJSON = "application/x-ndjson"

Work = Callable[[OnProgress], Awaitable[ProgressEvent]]
"""A long operation. It reports its steps and returns the event that ends the stream."""


class ByteStream(Protocol):
    """Bytes for a client, from a guest or from files. ``length`` is their number if it is known in advance."""

    @property
    def length(self) -> int | None:
        """Return how many bytes there are, ``None`` if that is not known."""

    def chunks(self) -> AsyncIterator[bytes]:
        """Yield the bytes."""

    def close(self) -> None:
        """Release what they come from. Idempotent."""


class ProxyResponse(StreamingResponse):
    """Pass bytes on to the client as they come.

    If their source fails, the connection closes before the response ends, so that no client takes it for complete.
    """

    def __init__(self, stream: ByteStream, media_type: str) -> None:
        headers = {} if stream.length is None else {"content-length": str(stream.length)}
        super().__init__(stream.chunks(), headers=headers, media_type=media_type)
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SquibError as error:
            log.warning("the response to %s is truncated: %s", scope["path"], error.message)
        finally:
            self._stream.close()


_NEWER_FIELDS = {"image": {"damage"}, "kernel": {"in_use_by", "damage"}}
"""Clients of the first version build before each ``squib run`` and reject fields that they do not know."""


class ProgressResponse(StreamingResponse):
    """A long operation whose progress is streamed as JSON lines.

    Each line is a `ProgressEvent`, and the last one holds the result or the error. If the client disconnects earlier,
    the operation is cancelled, and the request ends when the operation has cleaned up.
    """

    def __init__(self, work: Work) -> None:
        super().__init__(self._lines(), media_type=NDJSON)
        self._work = work
        self._steps: asyncio.Queue[Progress | None] = asyncio.Queue()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._task = asyncio.create_task(self._run())
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> ProgressEvent:
        try:
            return await self._work(self._steps.put_nowait)
        except SquibError as error:
            return ProgressEvent(error=WireError(**to_wire(error)))
        finally:
            self._steps.put_nowait(None)

    async def _lines(self) -> AsyncIterator[bytes]:
        while step := await self._steps.get():
            yield _line(ProgressEvent(progress=step))
        yield _line(await self._task)


def _line(event: ProgressEvent) -> bytes:
    """Encode an event as one line of ASCII JSON.

    A message may quote bytes that are not UTF-8.
    """
    fields = event.model_dump(mode="json", exclude_none=True, exclude=_NEWER_FIELDS)
    if event.vm is not None:
        fields["vm"] = event.vm.model_dump(mode="json")  # with its nulls, as in every other response
    return json.dumps(fields).encode("ascii") + b"\n"


def accepts_ndjson(request: Request) -> bool:
    """Return whether the client's ``Accept`` header asks for JSON lines."""
    accepted = request.headers.get("accept", "").split(",")
    return NDJSON in (kind.partition(";")[0].strip().lower() for kind in accepted)
