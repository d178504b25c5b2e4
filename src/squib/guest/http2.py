"""A small HTTP/2 client (RFC 9113) for one connection, over the `h2` state machine.

The general clients on top of h2 do not reset a stream that is abandoned and do not return its flow-control window, so
after a few hundred abandoned commands the connection would stand still. Here every byte of window is given back, a
response that nobody reads stops its sender and nothing else, and leaving a response early resets its stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator
from types import TracebackType

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from h2.errors import ErrorCodes
from h2.settings import SettingCodes

from squib.errors import AgentUnreachable

STREAM_WINDOW_BYTES = 256 * 1024
CONNECTION_WINDOW_BYTES = 256 * STREAM_WINDOW_BYTES
"""More than all streams (the agent allows 250) can hold: readers that have stopped never stop the others."""
_READ_BYTES = 256 * 1024
_MAX_FRAME_BYTES = 256 * 1024
_STATUS = re.compile(rb"[1-5][0-9][0-9]")
_LENGTH = re.compile(rb"[0-9]{1,18}")

Body = bytes | AsyncIterable[bytes]


class Response:
    """The answer to one request. Use as an async context manager: leaving it early resets the stream."""

    def __init__(self, connection: Http2Connection, stream_id: int) -> None:
        self._connection = connection
        self._stream_id = stream_id
        self._chunks: deque[tuple[bytes, int]] = deque()
        self._changed = asyncio.Event()
        self._ended = False
        self._error: AgentUnreachable | None = None
        self.status = 0
        self.length: int | None = None
        """How many bytes the body has, if the guest has said so; a body of another length ends the session."""
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
        self._connection._release(self._stream_id, sum(size for _, size in self._chunks), cancel=not self._ended)
        self._chunks.clear()
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
        """The body as it comes. The sender is let go on as the pieces are taken."""
        while True:
            while self._chunks:
                chunk, size = self._chunks.popleft()
                self._connection._acknowledge(self._stream_id, size)
                yield chunk
            if self._error:
                raise self._error
            if self._ended:
                return
            self._changed.clear()
            self.waiting = True
            try:
                await self._changed.wait()
            finally:
                self.waiting = False

    async def _wait_for_status(self) -> None:
        while not self.status:
            if self._error:
                raise self._error
            self._changed.clear()
            await self._changed.wait()

    def _receive(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ResponseReceived):
            self.status, self.length = _status_of(event), _length_of(event)
        elif isinstance(event, h2.events.DataReceived):
            data = event.data or b""
            self._chunks.append((data, event.flow_controlled_length or 0))
            self.received_bytes += len(data)
        elif isinstance(event, h2.events.StreamReset) and not self._ended:
            # (After the whole answer, a reset only says that the rest of the request is not wanted.)
            self._error = AgentUnreachable(f"the guest reset the stream (error {event.error_code})")
            self._ended = True
        elif isinstance(event, h2.events.StreamEnded):
            self._ended = True
        self._changed.set()

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


def _status_of(event: h2.events.ResponseReceived) -> int:
    text = dict(event.headers or [])[b":status"]
    if not _STATUS.fullmatch(text):
        raise h2.exceptions.ProtocolError(f"{text[:20]!r} is no status")
    return int(text)


def _length_of(event: h2.events.ResponseReceived) -> int | None:
    text = dict(event.headers or []).get(b"content-length", b"")
    return int(text) if _LENGTH.fullmatch(text) else None


class Http2Connection:
    """One HTTP/2 connection over a connected stream. Requests may run at the same time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._responses: dict[int, Response] = {}
        self._window_opened = asyncio.Condition()
        self._closed: AgentUnreachable | None = None
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
        self._h2.initiate_connection()
        self._h2.update_settings(
            {
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES,
                SettingCodes.MAX_FRAME_SIZE: _MAX_FRAME_BYTES,
            }
        )
        self._h2.increment_flow_control_window(CONNECTION_WINDOW_BYTES)
        self._flush()
        self._task = asyncio.create_task(self._read_loop(), name="squib-http2")

    @property
    def closed(self) -> bool:
        return self._closed is not None

    async def request(self, method: str, path: str, body: Body = b"", *, content_type: str = "") -> Response:
        """Send a request and return its response when the headers have come.

        Cancelling it resets the stream. Raises `AgentUnreachable` if the connection ends.
        """
        if self._closed:
            raise self._closed
        headers = [(":method", method), (":path", path), (":scheme", "http"), (":authority", "squib")]
        if content_type:
            headers.append(("content-type", content_type))
        try:
            stream_id = self._h2.get_next_available_stream_id()
            self._h2.send_headers(stream_id, headers, end_stream=body == b"")
        except h2.exceptions.ProtocolError as error:
            raise AgentUnreachable(f"the guest takes no more requests: {error}") from error
        response = self._responses[stream_id] = Response(self, stream_id)
        self._flush()
        try:
            if body != b"":
                await self._send_body(response, stream_id, body)
            await response._wait_for_status()
        except BaseException:
            response.close()
            raise
        return response

    async def _send_body(self, response: Response, stream_id: int, body: Body) -> None:
        if isinstance(body, bytes):
            await self._send_data(response, stream_id, body)
        else:
            async for chunk in body:
                await self._send_data(response, stream_id, chunk)
                if (
                    response._ended
                ):  # it has answered already: the rest of the body, which may have no end, is not wanted
                    return
        if not response._ended and not self._closed:
            self._h2.end_stream(stream_id)
            self._flush()

    async def _send_data(self, response: Response, stream_id: int, data: bytes) -> None:
        view = memoryview(data)
        while view and not response._ended:
            if self._closed:
                raise self._closed
            window = self._h2.local_flow_control_window(stream_id)
            size = min(window, self._h2.max_outbound_frame_size, len(view))
            if size <= 0:
                async with self._window_opened:
                    await self._window_opened.wait()
                continue
            self._h2.send_data(stream_id, bytes(view[:size]))
            view = view[size:]
            self._flush()
            with contextlib.suppress(ConnectionError):  # the read loop reports it
                await self._writer.drain()

    async def _read_loop(self) -> None:
        reason = "the guest closed its port"
        try:
            while data := await self._reader.read(_READ_BYTES):
                for event in self._h2.receive_data(data):
                    await self._dispatch(event)
                self._flush()
                await self._writer.drain()  # or a guest that asks for answers and reads none would fill our memory
        except (OSError, h2.exceptions.ProtocolError) as error:
            reason = f"the connection to the guest broke: {error}"
        finally:
            await self._shut_down(AgentUnreachable(reason))

    async def _dispatch(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            raise ConnectionResetError(f"the agent ended the session (error {event.error_code})")
        stream_id = getattr(event, "stream_id", None)
        if isinstance(event, h2.events.WindowUpdated | h2.events.RemoteSettingsChanged | h2.events.StreamReset):
            async with self._window_opened:
                self._window_opened.notify_all()
        if stream_id in self._responses:
            self._responses[stream_id]._receive(event)
        elif isinstance(event, h2.events.DataReceived):
            self._h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)

    def _acknowledge(self, stream_id: int, size: int) -> None:
        if size and not self._closed:
            with contextlib.suppress(h2.exceptions.ProtocolError):
                self._h2.acknowledge_received_data(size, stream_id)
                self._flush()

    def _release(self, stream_id: int, unread: int, *, cancel: bool) -> None:
        if self._responses.pop(stream_id, None) is None or self._closed:
            return
        self._acknowledge(stream_id, unread)
        if cancel:
            with contextlib.suppress(h2.exceptions.ProtocolError):
                self._h2.reset_stream(stream_id, ErrorCodes.CANCEL)
        self._flush()

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data and not self._writer.is_closing():
            self._writer.write(data)

    async def _shut_down(self, reason: AgentUnreachable) -> None:
        self._closed = reason
        self._writer.transport.abort()  # not close(), which waits for a guest that does not read
        for response in self._responses.values():
            response._fail(reason)
        async with self._window_opened:
            self._window_opened.notify_all()

    async def close(self) -> None:
        """End the connection; requests that are under way fail. Idempotent."""
        self._task.cancel()
        await asyncio.wait([self._task])  # what it failed of, if anything, is not the caller's: this never raises
