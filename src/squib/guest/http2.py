"""A small HTTP/2 client (RFC 9113) for one connection, on top of `h2`.

General clients on top of h2 do not reset a stream that is abandoned and do not return its flow-control window, so after
a few hundred abandoned commands the connection stands still. This one returns every byte of window. A response that
nobody reads stops its sender and nothing else, and leaving a response early resets its stream.

The bodies of large responses do not pass through h2, which copies a frame several times: `FrameTransport` gives them to
their `Response` directly, and their windows are kept here.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterable
from typing import Self

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from h2.errors import ErrorCodes
from h2.settings import SettingCodes

from squib.errors import AgentLost, AgentProtocolError, AgentUnreachable
from squib.guest.budget import LoopBudget
from squib.guest.response import Response
from squib.guest.transport import (
    MAX_FRAME_BYTES,
    MAX_HEADER_BLOCK_BYTES,
    FrameTransport,
    Sink,
    empty_last_data,
    window_update,
)
from squib.protocol.text import printable
from squib.undo import Undo

STREAM_WINDOW_BYTES = 256 * 1024
CONNECTION_WINDOW_BYTES = 256 * STREAM_WINDOW_BYTES
"""Returned as bytes arrive, read or not: a reader that stops holds up its own stream only."""
BULK_WINDOW_BYTES = 4 * 1024 * 1024
"""For a stream that should be as fast as possible: a window update costs an emulated guest about as much as 50 KiB of
data, and with a small window the guest waits for each.
"""
_SHORT_INPUTS = 1024
"""A request that may stall can always send this part of the connection's window (32 KiB: a key, a line). All requests
that the agent allows at a time use a quarter of the window for that.
"""

Body = bytes | AsyncIterable[bytes]


class Http2Connection:
    """One HTTP/2 connection over a connected stream.

    Requests may run at the same time.
    """

    def __init__(self, budget: LoopBudget) -> None:
        """See `open`."""
        self._budget = budget
        self._transport: FrameTransport
        self._responses: dict[int, Response] = {}
        self._window_opened = asyncio.Event()
        self._closed: AgentUnreachable | None = None
        self._received = 0  # bytes past h2 whose part of the connection's window was not returned
        self._body_bytes = 0  # of bodies, received in this turn
        self._most_room = 0  # the largest value of the connection's window for sending
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
        self._h2.decoder.max_header_list_size = MAX_HEADER_BLOCK_BYTES
        self._h2.initiate_connection()
        self._h2.update_settings(
            {
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES,
                SettingCodes.MAX_FRAME_SIZE: MAX_FRAME_BYTES,
                SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEADER_BLOCK_BYTES,
            }
        )
        self._h2.increment_flow_control_window(CONNECTION_WINDOW_BYTES)

    @classmethod
    async def open(cls, connection: socket.socket, received: bytes, budget: LoopBudget) -> Self:
        """Open HTTP/2 on a connected socket.

        ``received`` are the bytes that were read from the socket already.
        """
        self = cls(budget)
        self._transport = await FrameTransport.open(connection, self, budget)
        self._flush()
        self._transport.start(received)
        return self

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
        """Send a request; return its response when the headers arrive.

        ``window_bytes``, at least `STREAM_WINDOW_BYTES`, is how much of the response is held for a reader that stops.
        ``may_stall`` says that the guest may not read the body for a long time: half of its receive window is then left
        to other requests, and to the first bytes of such ones. Cancelling the call resets the stream.

        Raises `AgentLost`, `AgentProtocolError` if the connection ends.
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
            raise AgentUnreachable(f"the guest agent accepts no more requests: {error}") from error
        response = self._responses[stream_id] = Response(self, stream_id, window_bytes, may_stall=may_stall)
        self._budget.earn_request()
        self._transport.made_progress()
        self._flush()
        with Undo(response.close):
            if body != b"":
                await self._send_body(response, body)
            await response.wait_for_status()
        return response

    async def _send_body(self, response: Response, body: Body) -> None:
        if isinstance(body, bytes):
            await self._send_data(response, body)
        else:
            async for chunk in body:
                await self._send_data(response, chunk)
                if response.ended:  # it has been answered: the rest of the body, which may be endless, is not wanted
                    return
        if not response.ended and not self._closed:
            self._h2.end_stream(response.stream_id)
            self._flush()

    async def _send_data(self, response: Response, data: bytes) -> None:
        view = memoryview(data)
        while view and not response.ended:
            if self._closed:
                raise self._closed
            size = min(self._room(response), self._h2.max_outbound_frame_size, len(view))
            if size <= 0:
                await self._window_opened.wait()
                continue
            self._h2.send_data(response.stream_id, view[:size])
            response.sent_bytes += size
            view = view[size:]
            self._budget.earn_sent(size)
            self._transport.made_progress()
            self._flush()
            await self._transport.drain()

    def _room(self, response: Response) -> int:
        """Return how much of the request's body may be sent now."""
        connection = self._h2.outbound_flow_control_window
        stream = self._h2.local_flow_control_window(response.stream_id)
        self._most_room = max(self._most_room, connection)
        if response.may_stall:
            most = self._h2.remote_settings.initial_window_size
            short = self._most_room // _SHORT_INPUTS - response.sent_bytes
            return min(stream - most // 2, max(connection - self._most_room // 2, short))
        return stream

    # --- called by the transport --------------------------------------------------------------------------------

    def sink(self, stream_id: int, size: int) -> Sink | None:
        """Return the receiver of a DATA frame's bytes; ``None`` means h2."""
        response = self._responses.get(stream_id)
        if response is not None and (not response.direct or response.ended):
            return None
        self._received += size
        if response is None:
            return lambda body: None  # it was left early
        response.window -= size
        if response.window < 0:
            raise h2.exceptions.FlowControlError("more data than the window allows")
        return response.take

    def body_ended(self, stream_id: int) -> None:
        """Tell h2 that the stream has ended: it has not seen the body."""
        if stream_id in self._responses:
            self.receive(empty_last_data(stream_id))

    def receive(self, frame: bytes) -> None:
        """Pass a frame to h2.

        Raises `h2.exceptions.ProtocolError`, `AgentLost`.
        """
        for event in self._h2.receive_data(frame):
            self._dispatch(event)

    def turn_ended(self) -> None:
        """Count progress, and send what the received frames require."""
        if self._body_bytes:
            self._budget.earn_received(self._body_bytes)
            self._transport.made_progress()
            self._body_bytes = 0
        if self._received >= CONNECTION_WINDOW_BYTES // 4:
            self._transport.write(window_update(0, self._received))
            self._received = 0
        if self._flush() and self._transport.blocked:
            self._transport.stop_reading()  # a guest that requires replies and reads none would fill our memory

    def lost(self, error: Exception | None) -> None:
        """Fail all requests. Only the first call counts."""
        if self._closed is None:
            self._closed = _reason(error)
            for response in self._responses.values():
                response.fail(self._closed)
            self._wake_senders()

    def _dispatch(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            raise AgentLost(f"the guest agent ended the connection (error {event.error_code})")
        stream_id = getattr(event, "stream_id", None)
        if isinstance(event, h2.events.WindowUpdated | h2.events.RemoteSettingsChanged | h2.events.StreamReset):
            self._wake_senders()
        if stream_id in self._responses:
            self._responses[stream_id].handle(event)

    def _wake_senders(self) -> None:
        self._window_opened.set()
        self._window_opened = asyncio.Event()

    # --- called by responses ------------------------------------------------------------------------------------

    def body_received(self, count: int) -> None:
        """Count bytes of a body, as progress of this turn."""
        self._body_bytes += count

    def acknowledge(self, stream_id: int, size: int) -> None:
        """Return the window of bytes that came through h2."""
        if size:
            with contextlib.suppress(h2.exceptions.ProtocolError):
                self._h2.acknowledge_received_data(size, stream_id)

    def deliver(self, response: Response, size: int) -> None:
        """Return the window of ``size`` delivered bytes to their sender.

        The sender gets a quarter of the window at a time.
        """
        self._budget.spend_delivery()
        if response.direct and not response.ended and not self._closed:
            response.credit += size
            if response.credit >= response.max_window // 4:
                self._transport.write(window_update(response.stream_id, response.credit))
                response.window += response.credit
                response.credit = 0

    async def deliver_part(self) -> None:
        """Charge a further part of a piece; wait if the budget is spent."""
        self._budget.spend_part()
        await asyncio.sleep(self._budget.throttle())  # always: there may be many parts, and a reader that never waits
        self._budget.release()

    def release(self, response: Response, *, cancel: bool) -> None:
        """Forget a response; ``cancel`` resets its stream."""
        if self._responses.pop(response.stream_id, None) is None or self._closed:
            return
        if cancel:
            with contextlib.suppress(h2.exceptions.ProtocolError):
                self._h2.reset_stream(response.stream_id, ErrorCodes.CANCEL)
            self._flush()

    def _flush(self) -> bool:
        """Send what h2 has to send; return whether there was anything."""
        data = self._h2.data_to_send()
        if data:
            self._transport.write(data)
        return bool(data)

    async def close(self) -> None:
        """End the connection; requests in progress fail. Idempotent."""
        self.lost(AgentLost("the engine closed the connection to the guest"))
        self._transport.abort()
        await asyncio.sleep(0)


def _reason(error: Exception | None) -> AgentUnreachable:
    """Return the error for requests on a connection that ``error`` ended.

    ``None`` means that the guest closed it.
    """
    if isinstance(error, AgentUnreachable):
        return error
    if isinstance(error, h2.exceptions.ProtocolError):
        return AgentProtocolError(f"the guest violated HTTP/2: {printable(str(error), 200)}")
    if error:
        return AgentLost(f"the connection to the guest broke: {error}")
    return AgentLost("the guest closed the connection")
