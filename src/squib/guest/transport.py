"""The byte stream under an HTTP/2 connection: cuts it into frames.

The bytes of a large response's body are copied once, from the buffer that the socket is read into to the pieces that
the sink receives, as they arrive and not only when their frame is complete. Every other frame is passed on whole.

What a guest sends costs event-loop time. Frames are therefore processed in short turns within a `LoopBudget`, and
frames that are larger than an agent needs are rejected by their headers.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Protocol, Self

from h2.exceptions import ProtocolError

from squib.errors import AgentUnreachable
from squib.guest.budget import TURN_S, LoopBudget
from squib.undo import Undo

MAX_FRAME_BYTES = 256 * 1024
MAX_HEADER_BLOCK_BYTES = 16 * 1024
"""An agent's responses have about 200 bytes of headers."""
MAX_IDLE_FRAMES = 5000
"""Frames without content that may arrive without progress in between, such as a request or bytes of a body."""
_MAX_CONTROL_FRAME_BYTES = 1024
_HEADER_BYTES = 9
_BUFFER_BYTES = 2 * MAX_FRAME_BYTES
_CLOCK_FRAMES = 16
"""The clock is read once in so many frames."""
_DATA, _HEADERS, _PUSH_PROMISE, _CONTINUATION = 0, 1, 5, 9
_END_STREAM = 0x1
_PADDED = 0x8
_WINDOW_UPDATE = struct.Struct(">IBII")
_WINDOW_UPDATE_KIND = 0x4_08
_EMPTY_DATA = struct.Struct(">IBI")

Sink = Callable[[memoryview], None]


class FrameHandler(Protocol):
    """Receives the frames.

    All methods but `lost` may raise `ProtocolError` or `AgentUnreachable`, which closes the connection.
    """

    def sink(self, stream_id: int, size: int) -> Sink | None:
        """Return the receiver of a DATA frame's ``size`` bytes.

        If it is ``None``, the handler receives the frame whole.
        """

    def body_ended(self, stream_id: int) -> None:
        """The sink of this stream has received the last byte of the body."""

    def receive(self, frame: bytes) -> None:
        """Receive a whole frame."""

    def turn_ended(self) -> None:
        """The frames of this turn have been passed on."""

    def lost(self, error: Exception | None) -> None:
        """The connection is closed: because of ``error``, or by the guest."""


class FrameTransport(asyncio.BufferedProtocol):
    """The connection under one `FrameHandler`."""

    def __init__(self, handler: FrameHandler, budget: LoopBudget) -> None:
        """See `open`."""
        self._handler = handler
        self._budget = budget
        self._transport: asyncio.Transport | None = None
        self._next_turn: asyncio.TimerHandle | None = None
        self._writable = asyncio.Event()
        self._reading_stopped = False
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._filled = 0
        self._body_left = 0
        self._body_sink: Sink | None = None
        self._body_ends: int | None = None
        self._header_block_bytes = 0
        self._idle_frames = 0

    @classmethod
    async def open(cls, connection: socket.socket, handler: FrameHandler, budget: LoopBudget) -> Self:
        """Return the transport over a connected socket.

        It reads nothing before `start`.
        """
        transport = cls(handler, budget)
        with Undo(connection.close):
            await asyncio.get_running_loop().create_unix_connection(lambda: transport, sock=connection)
        return transport

    def start(self, received: bytes) -> None:
        """Start to read.

        ``received``, at most `MAX_FRAME_BYTES`, was read from the socket before.
        """
        self._buffer[: len(received)] = received
        self._filled = len(received)
        self._take_turn()

    @property
    def blocked(self) -> bool:
        """Whether too much data waits to be written to add more."""
        return not self._writable.is_set()

    def write(self, data: bytes) -> None:
        """Send bytes. They wait in memory while the guest does not read."""
        if self._transport and not self._transport.is_closing():
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait until the transport is not `blocked`, or is closed."""
        await self._writable.wait()

    def stop_reading(self) -> None:
        """Read nothing until the transport is not `blocked`."""
        self._reading_stopped = True

    def made_progress(self) -> None:
        """Restart the count that ends at `MAX_IDLE_FRAMES`."""
        self._idle_frames = 0

    def abort(self) -> None:
        """Close the connection at once; drop what waits to be written.

        A guest may never read it.
        """
        if self._transport:
            self._transport.abort()

    # --- called by the event loop -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.pause_reading()
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_turn()
        self._budget.release()
        self._writable.set()
        self._handler.lost(exc)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()
        self._reading_stopped = False
        self._pause_or_resume_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        self._take_turn()

    # --- turns --------------------------------------------------------------------------------------------------

    def _take_turn(self) -> None:
        """Pass on frames for at most `TURN_S`, and schedule the next step.

        The next step is another turn if frames are left, else reading on.
        """
        self._next_turn = None
        began = self._budget.clock()
        try:
            start, unfinished = self._pass_on(self._filled, began + TURN_S)
            self._handler.turn_ended()
        except (ProtocolError, AgentUnreachable) as error:
            self._handler.lost(error)
            self.abort()
            return
        except BaseException:  # a fault of squib: without this, the connection would stand still
            self.abort()
            raise
        finally:
            self._budget.spend(self._budget.clock() - began)
        self._filled -= start
        if start and self._filled:
            self._buffer[: self._filled] = bytes(self._buffer[start : start + self._filled])
        delay_s = self._budget.throttle()
        if (unfinished or delay_s) and self._transport and not self._transport.is_closing():
            go_on = self._take_turn if unfinished else self._read_on  # an empty turn would add to the debt, for ever
            self._next_turn = asyncio.get_running_loop().call_later(delay_s, go_on)
        self._pause_or_resume_reading()

    def _read_on(self) -> None:
        """Read from the guest again, after a wait that has paid its debt."""
        self._next_turn = None
        self._budget.release()
        self._pause_or_resume_reading()

    def _cancel_turn(self) -> None:
        if self._next_turn:
            self._next_turn.cancel()
            self._next_turn = None

    def _pause_or_resume_reading(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._next_turn or self._reading_stopped:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _pass_on(self, end: int, until: float) -> tuple[int, bool]:
        """Pass on the buffer up to ``end``, or until the time ``until``.

        Returns where the rest begins, and whether the time ended first.
        """
        start = frames = 0
        while True:
            if self._body_sink:
                size = min(self._body_left, end - start)
                self._body_sink(self._buffer[start : start + size])
                start += size
                self._body_left -= size
                if self._body_left:
                    return start, False
                self._body_sink = None
                if self._body_ends is not None:
                    self._handler.body_ended(self._body_ends)
            frames += 1
            if frames % _CLOCK_FRAMES == 0 and self._budget.clock() > until:
                return start, True
            if end - start < _HEADER_BYTES:
                return start, False
            header = bytes(self._buffer[start : start + _HEADER_BYTES])
            size = int.from_bytes(header[:3], "big")
            kind = header[3]
            self._check(kind, size)
            stream_id = int.from_bytes(header[5:], "big")
            if kind == _DATA and (sink := self._handler.sink(stream_id, size)):
                if header[4] & _PADDED:
                    raise ProtocolError("padding, which no agent sends")
                start += _HEADER_BYTES
                self._body_left, self._body_sink = size, sink
                self._body_ends = stream_id if header[4] & _END_STREAM else None
            elif end - start < _HEADER_BYTES + size:
                return start, False
            else:
                if kind in (_HEADERS, _CONTINUATION):
                    self._header_block_bytes = size + (self._header_block_bytes if kind == _CONTINUATION else 0)
                self._handler.receive(bytes(self._buffer[start : start + _HEADER_BYTES + size]))
                start += _HEADER_BYTES + size
            if kind != _DATA or size == 0:  # data of streams that were left early is not idle
                self._idle_frames += 1
                if self._idle_frames > MAX_IDLE_FRAMES:
                    raise ProtocolError(f"more than {MAX_IDLE_FRAMES} frames without progress")

    def _check(self, kind: int, size: int) -> None:
        """Reject a frame by its header. Raises `ProtocolError`."""
        most = MAX_FRAME_BYTES if kind == _DATA else _MAX_CONTROL_FRAME_BYTES
        if kind in (_HEADERS, _PUSH_PROMISE):
            most = MAX_HEADER_BLOCK_BYTES
        elif kind == _CONTINUATION:
            most = MAX_HEADER_BLOCK_BYTES - self._header_block_bytes
        if size > most:
            raise ProtocolError(f"a frame of kind {kind} with {size} bytes; the limit is {most}")


def window_update(stream_id: int, size: int) -> bytes:
    """Return a frame that lets the sender of a stream send more bytes.

    ``size`` is how many more. Stream 0 is the whole connection.
    """
    return _WINDOW_UPDATE.pack(_WINDOW_UPDATE_KIND, 0, stream_id, size)


def empty_last_data(stream_id: int) -> bytes:
    """Return a frame that ends a stream."""
    return _EMPTY_DATA.pack(0, _END_STREAM, stream_id)
