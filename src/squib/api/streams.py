"""Streams of a guest's bytes as answers."""

from __future__ import annotations

import logging

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from squib.core.guestio.files import GuestStream
from squib.errors import SquibError

log = logging.getLogger("squib.streams")


class PassedOn(StreamingResponse):
    """What a guest sends, as it comes. If it breaks off so does the answer: the connection is closed before its end,
    and no client takes it for whole.
    """

    def __init__(self, stream: GuestStream, media_type: str) -> None:
        headers = {} if stream.length is None else {"content-length": str(stream.length)}
        super().__init__(stream.chunks(), headers=headers, media_type=media_type)
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SquibError as error:
            log.warning("an answer to %s breaks off: %s", scope["path"], error.message)
        finally:
            self._stream.close()
