"""One request and its response, with limits on the size and time of the body.

A response that is sent before the whole body was read closes the connection.
"""

from __future__ import annotations

import asyncio
import contextlib

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Send

from squib.errors import BodyTooLarge, InvalidArgument

STALL_S = 30.0
"""How long a client may take for the next piece of a body of limited size."""
_LINGER_S = 1.0
_MAX_LENGTH_DIGITS = 18


class Exchange:
    """Watches a request's body and its response.

    A response that is sent before the body has come to its end closes the connection: the rest of the body may be
    endless. The connection is not closed at once, but after the client has closed it or a second has passed, because
    a client that is still sending would otherwise lose the response.
    """

    def __init__(self, headers: Headers, receive: Receive, send: Send) -> None:
        self._headers = headers
        self._receive = receive
        self._send = send
        self._complete = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
        self._limit: int | None = None
        self._received = 0
        self._is_last = False

    def close(self) -> None:
        """Close the connection after the response."""
        self._is_last = True

    def limit(self, max_bytes: int) -> None:
        """Limit the body's size and the time that it may take.

        Raises `BodyTooLarge`.
        """
        length = self._headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > _MAX_LENGTH_DIGITS or int(length) > max_bytes:
            raise _too_large(max_bytes)
        self._limit = max_bytes

    async def receive(self) -> Message:
        """Receive the next part of the request.

        Raises `BodyTooLarge`, and `InvalidArgument` if none comes in time.
        """
        if self._limit is None or self._complete:
            message = await self._receive()
        else:
            try:
                async with asyncio.timeout(STALL_S):
                    message = await self._receive()
            except TimeoutError:
                raise InvalidArgument(f"the request body did not arrive: nothing came for {STALL_S:g} s") from None
        self._received += len(message.get("body", b""))
        if not message.get("more_body", False):
            self._complete = True
        if self._limit is not None and self._received > self._limit:
            raise _too_large(self._limit)
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the response."""
        if message["type"] == "http.response.start" and (self._is_last or not self._complete):
            await self._send({**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]})
        elif message["type"] == "http.response.body" and not (self._complete or message.get("more_body", False)):
            await self._send({**message, "more_body": True})
            await self._drain()
            await self._send({"type": "http.response.body", "body": b""})
        else:
            await self._send(message)

    async def _drain(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while not self._complete:
                    self._complete = not (await self._receive()).get("more_body", False)


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"the request body is larger than {max_bytes >> 20} MiB",
        hint="pass long data to a command as standard input (input=), or write it to a file (vm.files.write)",
    )
