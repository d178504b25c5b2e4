"""The response to one HTTP/2 request, and its body as a stream."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Protocol

import h2.events
import h2.exceptions

from squib.errors import AgentLost, AgentProtocolError, AgentUnreachable

_PIECE_BYTES = 256 * 1024
_SMALL_PIECE_BYTES = 4096
_STATUS = re.compile(rb"[1-5][0-9][0-9]")
_LENGTH = re.compile(rb"[0-9]{1,18}")


class BodyChecker(Protocol):
    """Checks a body on its way to its reader."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what of the body is good, in parts.

        Raises `AgentProtocolError`.
        """

    def finish(self) -> None:
        """The body has ended. Raises `AgentProtocolError`."""


class Connection(Protocol):
    """What a response needs of its connection."""

    def body_received(self, count: int) -> None:
        """Bytes of a body have arrived."""

    def acknowledge(self, stream_id: int, size: int) -> None:
        """Return the window of bytes that came through h2."""

    def deliver(self, response: Response, size: int) -> None:
        """The reader takes ``size`` bytes: let the sender send more."""

    async def deliver_part(self) -> None:
        """Wait before the reader takes a further part of a piece.

        The wait is 0 unless the guest's budget is used up.
        """

    def release(self, response: Response, *, cancel: bool) -> None:
        """Forget a response; ``cancel`` resets its stream."""


class Response:
    """The response to one request.

    Use as an async context manager: leaving it early resets the stream.
    """

    def __init__(self, connection: Connection, stream_id: int, window_bytes: int, *, may_stall: bool) -> None:
        self._connection = connection
        self.stream_id = stream_id
        self.may_stall = may_stall
        self.sent_bytes = 0
        """Bytes of the request's body that were sent."""
        self.credit = 0
        """Bytes of the stream's window that the sender has not got back."""
        self.window = self.max_window = window_bytes
        self.direct = False
        """Whether the body does not pass through h2."""
        self.ended = False
        self.status = 0
        self.length: int | None = None
        """The length of the body, if the guest has announced it."""
        self.waiting = False
        """Whether a reader waits and the guest has sent nothing more."""
        self.received_bytes = 0
        self._pieces: deque[bytes] = deque()
        self._changed = asyncio.Event()
        self._error: AgentUnreachable | None = None
        self._checker: BodyChecker | None = None

    async def __aenter__(self) -> Response:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Discard what was not read.

        If the guest has not sent all, reset the stream. Idempotent.
        """
        self._connection.release(self, cancel=not self.ended)
        self._pieces.clear()
        self.ended = True

    def check_with(self, checker: BodyChecker) -> Response:
        """Pass the body through ``checker`` before the reader gets it."""
        self._checker = checker
        return self

    async def read(self, *, max_bytes: int = 1 << 20) -> bytes:
        """Return the whole body.

        Raises `AgentProtocolError` if it is longer than ``max_bytes``, and as `stream`.
        """
        body = bytearray()
        async for chunk in self.stream():
            body += chunk
            if len(body) > max_bytes:
                self.close()
                raise AgentProtocolError(f"the guest sent a response longer than {max_bytes} bytes")
        return bytes(body)

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield the body in pieces, each with all that has arrived.

        Taking a piece lets the sender send more.

        Raises `AgentLost` if the body breaks off, and `AgentProtocolError` if it has not the announced length or the
        checker rejects it.
        """
        while True:
            if self._pieces:
                piece = self._next_piece()
                self._connection.deliver(self, len(piece))
                if self._checker is None:
                    yield piece
                    continue
                for number, part in enumerate(self._checker.feed(piece)):
                    if number:
                        await self._connection.deliver_part()
                    yield part
                continue
            if self._error:
                raise self._error
            if self.ended:
                self._check_end()
                return
            self._changed.clear()
            self.waiting = True
            try:
                await self._changed.wait()
            finally:
                self.waiting = False

    def _check_end(self) -> None:
        if self.length not in (None, self.received_bytes):
            raise AgentProtocolError(f"the guest sent {self.received_bytes} bytes and had announced {self.length}")
        if self._checker:
            self._checker.finish()

    def _next_piece(self) -> bytes:
        """Take all that has arrived, up to `_PIECE_BYTES`."""
        taken = [self._pieces.popleft()]
        size = len(taken[0])
        while self._pieces and size + len(self._pieces[0]) <= _PIECE_BYTES:
            taken.append(self._pieces.popleft())
            size += len(taken[-1])
        return b"".join(taken)

    async def wait_for_status(self) -> None:
        """Wait for the headers. Raises `AgentUnreachable`."""
        while not self.status:
            if self._error:
                raise self._error
            self._changed.clear()
            await self._changed.wait()

    def handle(self, event: h2.events.Event) -> None:
        """Apply an event of this stream.

        Raises `h2.exceptions.ProtocolError`.
        """
        if isinstance(event, h2.events.ResponseReceived):
            headers = dict(event.headers or [])
            self.status, self.length = _status_of(headers), _length_of(headers)
            # If there is a content-length, h2 counts the bytes of the body, so they have to pass through it.
            self.direct = b"content-length" not in headers
            if not self.direct and int(headers[b"content-length"]) > _PIECE_BYTES:
                raise h2.exceptions.ProtocolError("a long response with content-length, which no agent sends")
        elif isinstance(event, h2.events.DataReceived):
            # The window of these bytes is returned at once, and that of padding: they are less than a piece.
            self._connection.acknowledge(self.stream_id, event.flow_controlled_length or 0)
            self._add(bytes(event.data or b""))
        elif isinstance(event, h2.events.StreamReset) and not self.ended:
            # (After a complete response, a reset only rejects the rest of the request.)
            self._error = AgentLost(f"the guest reset the stream (error {event.error_code})")
            self.ended = True
        elif isinstance(event, h2.events.StreamEnded):
            self.ended = True
        self._changed.set()

    def take(self, body: memoryview) -> None:
        """Add bytes of the body that did not pass through h2.

        Raises `h2.exceptions.ProtocolError`.
        """
        self._add(bytes(body))
        self._changed.set()

    def _add(self, piece: bytes) -> None:
        self.received_bytes += len(piece)
        if self.length is not None and self.received_bytes > self.length:
            raise h2.exceptions.ProtocolError(f"more than the {self.length} bytes that it has announced")
        self._connection.body_received(len(piece))
        if self._pieces and len(self._pieces[-1]) + len(piece) <= _SMALL_PIECE_BYTES:
            self._pieces[-1] += piece  # single bytes would otherwise cost fifty times their window
        elif piece:
            self._pieces.append(piece)

    def give_up(self, error: AgentUnreachable) -> None:
        """Close the response; its reader gets ``error``."""
        self.close()
        self._error = error
        self._changed.set()

    def fail(self, error: AgentUnreachable) -> None:
        """End the response with ``error``, unless it is complete."""
        if not self.ended:
            self._error = error
            self.ended = True
        self._changed.set()


def _status_of(headers: dict[bytes, bytes]) -> int:
    text = headers[b":status"]
    if not _STATUS.fullmatch(text):
        raise h2.exceptions.ProtocolError(f"invalid status {text[:20]!r}")
    return int(text)


def _length_of(headers: dict[bytes, bytes]) -> int | None:
    text = headers.get(b"squib-length", b"")
    return int(text) if _LENGTH.fullmatch(text) else None
