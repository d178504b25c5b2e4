"""``/v1/listeners``: serve the API on TCP as well."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from squib.api.schema import ListenRequest
from squib.api.streams import NDJSON
from squib.errors import Unsupported

router = APIRouter(tags=["engine"])

log = logging.getLogger("squib.listeners")


class ListenerResponse(StreamingResponse):
    """A JSON line that describes a listener, which is closed on disconnect.

    The response does not end until the client disconnects.
    """

    def __init__(self, url: str, token: str, listener: contextlib.AsyncExitStack) -> None:
        super().__init__(self._lines(url, token), media_type=NDJSON)
        self._listener = listener

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._listener:
            await super().__call__(scope, receive, send)

    async def _lines(self, url: str, token: str) -> AsyncIterator[bytes]:
        yield json.dumps({"url": url, "token": token}).encode() + b"\n"
        await asyncio.Event().wait()


@router.post("/listeners", response_class=StreamingResponse, responses={200: {"content": {NDJSON: {}}}})
async def listen(request: Request, body: ListenRequest) -> StreamingResponse:
    """Serve the API on a TCP address until the client disconnects.

    The response is one JSON line with ``url`` and ``token``, and does not end. Only for clients of the unix socket.
    """
    listening = request.app.state.listening
    if listening is None:
        raise Unsupported("only clients of the unix socket may open a listener")
    listener = contextlib.AsyncExitStack()
    url, token = await listener.enter_async_context(listening(body))
    log.info("listening on %s", url)
    return ListenerResponse(url, token, listener)
