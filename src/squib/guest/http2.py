"""A small HTTP/2 client (RFC 9113) for one connection, over the `h2` state machine.

The general clients on top of h2 do not reset a stream that is abandoned and do not return its flow-control window, so
after a few hundred abandoned commands the connection would stand still. Here every byte of window is given back, a
response that nobody reads stops its sender and nothing else, and leaving a response early resets its stream.

The bodies of large answers do not pass through h2, which handles a frame at the price of several copies: `Wire` gives
them to their `Response` directly, and their windows are kept here.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator
from types import TracebackType
from typing import Self

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from h2.errors import ErrorCodes
from h2.settings import SettingCodes

from squib.errors import AgentUnreachable
from squib.guest.wire import MAX_FRAME_BYTES, Sink, Wire, empty_last_data, window_update

STREAM_WINDOW_BYTES = 256 * 1024
CONNECTION_WINDOW_BYTES = 256 * STREAM_WINDOW_BYTES
"""Given back as bytes come, read or not: readers that have stopped hold their streams, and never the others."""
BULK_WINDOW_BYTES = 4 * 1024 * 1024
"""For a stream that should flow as fast as it can: an update of a window costs an emulated guest about as much as
50 KiB of data, and with a small window the guest waits for each.
"""
_PIECE_BYTES = 256 * 1024
_SMALL_PIECE_BYTES = 4096
_SHORT_INPUTS = 1024
"""A request that may stall sends this part of the connection's window in any case (32 KiB: a key, a line): for all that
the agent allows at a time that is a quarter of it.
"""
_STATUS = re.compile(rb"[1-5][0-9][0-9]")
_LENGTH = re.compile(rb"[0-9]{1,18}")

Body = bytes | AsyncIterable[bytes]


class Response:
    """The answer to one request. Use as an async context manager: leaving it early resets the stream."""

    def __init__(self, connection: Http2Connection, stream_id: int, window_bytes: int, *, may_stall: bool) -> None:
        self._connection = connection
        self._stream_id = stream_id
        self._may_stall = may_stall
        self._sent_bytes = 0  # of the request's body
        self._pieces: deque[bytes] = deque()
        self._credit = 0  # bytes of window to give back
        self._direct = False  # past h2
        self._window = self._max_window = window_bytes
        self._changed = asyncio.Event()
        self._ended = False
        self._error: AgentUnreachable | None = None
        self.status = 0
        self.length: int | None = None
        """How many bytes the body has, if the guest has said so."""
        self.waiting = False
        """Whether somebody reads on and the guest has sent nothing more."""
        self.received_bytes = 0

    async def __aenter__(self) -> Response:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up what was not read yet; the sender learns of it. Idempotent."""
        self._connection._release(self, cancel=not self._ended)
        self._pieces.clear()
        self._ended = True

    async def read(self, *, max_bytes: int = 1 << 20) -> bytes:
        """The whole body. Raises `AgentUnreachable` if it is longer than ``max_bytes``."""
        body = bytearray()
        async for chunk in self.stream():
            body += chunk
            if len(body) > max_bytes:
                self.close()
                raise AgentUnreachable(f"the guest's answer is longer than {max_bytes} bytes")
        return bytes(body)

    async def stream(self) -> AsyncIterator[bytes]:
        """The body as it comes, in pieces of what has come by then. The sender is let go on as they are taken.

        Raises `AgentUnreachable` if it breaks off, or is not as long as the guest has said.
        """
        while True:
            if self._pieces:
                piece = self._next_piece()
                self._connection._give_back(self, len(piece))
                yield piece
                continue
            if self._error:
                raise self._error
            if self._ended:
                if self.length not in (None, self.received_bytes):
                    raise AgentUnreachable(f"the guest sent {self.received_bytes} bytes and had said {self.length}")
                return
            self._changed.clear()
            self.waiting = True
            try:
                await self._changed.wait()
            finally:
                self.waiting = False

    def _next_piece(self) -> bytes:
        """All that is there, if that is not too much."""
        taken = [self._pieces.popleft()]
        size = len(taken[0])
        while self._pieces and size + len(self._pieces[0]) <= _PIECE_BYTES:
            taken.append(self._pieces.popleft())
            size += len(taken[-1])
        return b"".join(taken)

    async def _wait_for_status(self) -> None:
        while not self.status:
            if self._error:
                raise self._error
            self._changed.clear()
            await self._changed.wait()

    def _receive(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ResponseReceived):
            headers = dict(event.headers or [])
            self.status, self.length = _status_of(headers), _length_of(headers)
            # Of a body with content-length h2 counts the bytes, so they have to pass through it.
            self._direct = b"content-length" not in headers
            if not self._direct and int(headers[b"content-length"]) > _PIECE_BYTES:
                raise h2.exceptions.ProtocolError("a long answer with content-length, which no agent sends")
        elif isinstance(event, h2.events.DataReceived):
            # (What is small, and padding, is given back as it comes: it is less than a piece.)
            self._connection._acknowledge(self._stream_id, event.flow_controlled_length or 0)
            self._add(bytes(event.data or b""))
        elif isinstance(event, h2.events.StreamReset) and not self._ended:
            # (After the whole answer, a reset only says that the rest of the request is not wanted.)
            self._error = AgentUnreachable(f"the guest reset the stream (error {event.error_code})")
            self._ended = True
        elif isinstance(event, h2.events.StreamEnded):
            self._ended = True
        self._changed.set()

    def _take(self, body: memoryview) -> None:
        """Bytes of the body that did not pass through h2."""
        self._add(bytes(body))
        self._changed.set()

    def _add(self, piece: bytes) -> None:
        self.received_bytes += len(piece)
        if self._pieces and len(self._pieces[-1]) + len(piece) <= _SMALL_PIECE_BYTES:
            self._pieces[-1] += piece  # or a guest that sends single bytes would cost us fifty times the window
        elif piece:
            self._pieces.append(piece)

    def give_up(self, error: AgentUnreachable) -> None:
        """As `close`; whoever reads it gets ``error``."""
        self.close()
        self._error = error
        self._changed.set()

    def _fail(self, error: AgentUnreachable) -> None:
        if not self._ended:
            self._error = error
            self._ended = True
        self._changed.set()


def _status_of(headers: dict[bytes, bytes]) -> int:
    text = headers[b":status"]
    if not _STATUS.fullmatch(text):
        raise h2.exceptions.ProtocolError(f"{text[:20]!r} is no status")
    return int(text)


def _length_of(headers: dict[bytes, bytes]) -> int | None:
    text = headers.get(b"squib-length", b"")
    return int(text) if _LENGTH.fullmatch(text) else None


class Http2Connection:
    """One HTTP/2 connection over a connected stream. Requests may run at the same time."""

    def __init__(self) -> None:
        """See `open`."""
        self._wire: Wire
        self._responses: dict[int, Response] = {}
        self._window_opened = asyncio.Event()
        self._closed: AgentUnreachable | None = None
        self._received = 0  # bytes past h2 whose part of the connection's window was not given back
        self._most_room = 0  # that the connection's window for what is sent ever had
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
        self._h2.initiate_connection()
        self._h2.update_settings(
            {
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES,
                SettingCodes.MAX_FRAME_SIZE: MAX_FRAME_BYTES,
            }
        )
        self._h2.increment_flow_control_window(CONNECTION_WINDOW_BYTES)

    @classmethod
    async def open(cls, connection: socket.socket, received: bytes) -> Self:
        """A session on a connected socket, of which ``received`` was read already."""
        session = cls()
        session._wire = await Wire.open(connection, session)
        session._flush()
        session._wire.start(received)
        return session

    @property
    def closed(self) -> bool:
        return self._closed is not None

    async def request(
        self,
        method: str,
        path: str,
        body: Body = b"",
        *,
        content_type: str = "",
        window_bytes: int = STREAM_WINDOW_BYTES,
        may_stall: bool = False,
    ) -> Response:
        """Send a request and return its response when the headers have come.

        ``window_bytes``, at least `STREAM_WINDOW_BYTES`, is what a reader that stops will hold of the answer. If the
        guest ``may_stall``, reading the body when it likes, half of what it has room for is left to other requests (and
        to the beginnings of such ones).
        Cancelling the call resets the stream. Raises `AgentUnreachable` if the connection ends.
        """
        if self._closed:
            raise self._closed
        headers = [(":method", method), (":path", path), (":scheme", "http"), (":authority", "squib")]
        if content_type:
            headers.append(("content-type", content_type))
        try:
            stream_id = self._h2.get_next_available_stream_id()
            self._h2.send_headers(stream_id, headers, end_stream=body == b"")
            if window_bytes > STREAM_WINDOW_BYTES:
                self._h2.increment_flow_control_window(window_bytes - STREAM_WINDOW_BYTES, stream_id)
        except h2.exceptions.ProtocolError as error:
            raise AgentUnreachable(f"the guest takes no more requests: {error}") from error
        response = self._responses[stream_id] = Response(self, stream_id, window_bytes, may_stall=may_stall)
        self._flush()
        try:
            if body != b"":
                await self._send_body(response, body)
            await response._wait_for_status()
        except BaseException:
            response.close()
            raise
        return response

    async def _send_body(self, response: Response, body: Body) -> None:
        if isinstance(body, bytes):
            await self._send_data(response, body)
        else:
            async for chunk in body:
                await self._send_data(response, chunk)
                if response._ended:  # it has answered: the rest of the body, which may have no end, is not wanted
                    return
        if not response._ended and not self._closed:
            self._h2.end_stream(response._stream_id)
            self._flush()

    async def _send_data(self, response: Response, data: bytes) -> None:
        view = memoryview(data)
        while view and not response._ended:
            if self._closed:
                raise self._closed
            size = min(self._room(response), self._h2.max_outbound_frame_size, len(view))
            if size <= 0:
                await self._window_opened.wait()
                continue
            self._h2.send_data(response._stream_id, view[:size])
            response._sent_bytes += size
            view = view[size:]
            self._flush()
            await self._wire.drain()

    def _room(self, response: Response) -> int:
        """How much of the request's body may be sent now."""
        connection = self._h2.outbound_flow_control_window
        stream = self._h2.local_flow_control_window(response._stream_id)
        self._most_room = max(self._most_room, connection)
        if response._may_stall:
            most = self._h2.remote_settings.initial_window_size
            short = self._most_room // _SHORT_INPUTS - response._sent_bytes
            return min(stream - most // 2, max(connection - self._most_room // 2, short))
        return stream

    # --- called by the wire -------------------------------------------------------------------------------------

    def sink(self, stream_id: int, size: int) -> Sink | None:
        """Where the bytes of a DATA frame go; ``None``: through h2."""
        response = self._responses.get(stream_id)
        if response is not None and (not response._direct or response._ended):
            return None
        self._received += size
        if response is None:
            return lambda body: None  # it was given up
        response._window -= size
        if response._window < 0:
            raise h2.exceptions.FlowControlError("more data than was allowed")
        return response._take

    def body_ended(self, stream_id: int) -> None:
        """A body that did not pass through h2 has ended: so has the stream, which h2 has to be told."""
        if stream_id in self._responses:
            self.receive(empty_last_data(stream_id))

    def receive(self, frame: bytes) -> None:
        """A frame for h2. Raises `h2.exceptions.ProtocolError`."""
        for event in self._h2.receive_data(frame):
            self._dispatch(event)

    def received(self) -> None:
        """All that has come was received: answer what asks for an answer."""
        if self._received >= CONNECTION_WINDOW_BYTES // 4:
            self._wire.write(window_update(0, self._received))
            self._received = 0
        if self._flush() and self._wire.blocked:
            self._wire.stop_reading()  # or a guest that asks for answers and reads none would fill our memory

    def lost(self, error: Exception | None) -> None:
        """The connection is gone: the first reason counts."""
        if self._closed is None:
            broken = f"the connection to the guest broke: {error}" if error else "the guest closed its port"
            self._closed = AgentUnreachable(broken)
            for response in self._responses.values():
                response._fail(self._closed)
            self._let_senders_look()

    def _dispatch(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            raise h2.exceptions.ProtocolError(f"the agent ended the session (error {event.error_code})")
        stream_id = getattr(event, "stream_id", None)
        if isinstance(event, h2.events.WindowUpdated | h2.events.RemoteSettingsChanged | h2.events.StreamReset):
            self._let_senders_look()
        if stream_id in self._responses:
            self._responses[stream_id]._receive(event)

    def _let_senders_look(self) -> None:
        self._window_opened.set()
        self._window_opened = asyncio.Event()

    # --- called by responses ------------------------------------------------------------------------------------

    def _acknowledge(self, stream_id: int, size: int) -> None:
        """Give back the window of bytes that came through h2."""
        if size:
            with contextlib.suppress(h2.exceptions.ProtocolError):
                self._h2.acknowledge_received_data(size, stream_id)

    def _give_back(self, response: Response, size: int) -> None:
        """Let the sender of what was read go on, a quarter of the window at a time."""
        if response._direct and not response._ended and not self._closed:
            response._credit += size
            if response._credit >= response._max_window // 4:
                self._wire.write(window_update(response._stream_id, response._credit))
                response._window += response._credit
                response._credit = 0

    def _release(self, response: Response, *, cancel: bool) -> None:
        if self._responses.pop(response._stream_id, None) is None or self._closed:
            return
        if cancel:
            with contextlib.suppress(h2.exceptions.ProtocolError):
                self._h2.reset_stream(response._stream_id, ErrorCodes.CANCEL)
            self._flush()

    def _flush(self) -> bool:
        """Send what h2 has to say; whether that was anything."""
        data = self._h2.data_to_send()
        if data:
            self._wire.write(data)
        return bool(data)

    async def close(self) -> None:
        """End the connection; requests that are under way fail. Idempotent."""
        self.lost(None)
        self._wire.abort()
        await asyncio.sleep(0)
