"""The byte stream of an HTTP/2 session: cuts it into frames, and takes the bodies of large answers on a short way.

Bytes of a body are copied once, from the buffer that the socket is read into to the pieces that the sink is given, as
they come and not only when their frame is complete. Every other frame is handed over whole.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Protocol, Self

from h2.exceptions import ProtocolError

MAX_FRAME_BYTES = 256 * 1024
_HEADER_BYTES = 9
_BUFFER_BYTES = 2 * MAX_FRAME_BYTES
_DATA = 0
_END_STREAM = 0x1
_PADDED = 0x8
_WINDOW_UPDATE = struct.Struct(">IBII")
_WINDOW_UPDATE_KIND = 0x4_08
_EMPTY_DATA = struct.Struct(">IBI")

Sink = Callable[[memoryview], None]


class Session(Protocol):
    """Whose bytes they are. All but `lost` may raise `ProtocolError`, which ends the session."""

    def sink(self, stream_id: int, size: int) -> Sink | None:
        """Who takes the ``size`` bytes of a DATA frame; ``None``: the frame is received as every other one."""

    def body_ended(self, stream_id: int) -> None:
        """What the sink of this stream has taken was all."""

    def receive(self, frame: bytes) -> None:
        """Take a frame."""

    def received(self) -> None:
        """All that has come by now was given."""

    def lost(self, error: Exception | None) -> None:
        """The connection is gone: broken by ``error``, or closed."""


class Wire(asyncio.BufferedProtocol):
    """The connection under one `Session`."""

    def __init__(self, session: Session) -> None:
        """See `open`."""
        self._session = session
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._filled = 0
        self._body_left = 0
        self._body_sink: Sink | None = None
        self._body_ends: int | None = None

    @classmethod
    async def open(cls, connection: socket.socket, session: Session) -> Self:
        """The wire over a connected socket; `start` it."""
        wire = cls(session)
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: wire, sock=connection)
        except BaseException:
            connection.close()
            raise
        return wire

    def start(self, received: bytes) -> None:
        """Begin to read. ``received`` was read from the socket already."""
        assert self._transport
        while received:
            room = self.get_buffer(-1)
            size = min(len(room), len(received))
            room[:size] = received[:size]
            self.buffer_updated(size)
            received = received[size:]
        if not self._transport.is_closing():
            self._transport.resume_reading()

    @property
    def blocked(self) -> bool:
        """Whether so much waits to be written that nothing should be added."""
        return not self._writable.is_set()

    def write(self, data: bytes) -> None:
        """Send bytes; they wait in memory while the guest does not read."""
        if self._transport and not self._transport.is_closing():
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait until the wire is not `blocked`, or gone."""
        await self._writable.wait()

    def stop_reading(self) -> None:
        """Read nothing more until the wire is not `blocked`."""
        if self._transport:
            self._transport.pause_reading()

    def abort(self) -> None:
        """Close the connection at once (not after all is written: a guest may never read it)."""
        if self._transport:
            self._transport.abort()

    # --- called by the event loop -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.pause_reading()
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._writable.set()
        self._session.lost(exc)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()
        if self._transport and not self._transport.is_closing():
            self._transport.resume_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        end = self._filled + nbytes
        try:
            start = self._take(end)
            self._session.received()
        except ProtocolError as error:
            self._session.lost(error)
            self.abort()
            return
        self._filled = end - start
        if start and self._filled:
            self._buffer[: self._filled] = bytes(self._buffer[start:end])

    def _take(self, end: int) -> int:
        """Hand over what the buffer holds up to ``end``; return where the first frame begins that is not complete."""
        start = 0
        while True:
            if self._body_sink:
                size = min(self._body_left, end - start)
                self._body_sink(self._buffer[start : start + size])
                start += size
                self._body_left -= size
                if self._body_left:
                    return start
                self._body_sink = None
                if self._body_ends is not None:
                    self._session.body_ended(self._body_ends)
            if end - start < _HEADER_BYTES:
                return start
            header = bytes(self._buffer[start : start + _HEADER_BYTES])
            size = int.from_bytes(header[:3], "big")
            if size > MAX_FRAME_BYTES:
                raise ProtocolError(f"a frame of {size} bytes")
            stream_id = int.from_bytes(header[5:], "big")
            if header[3] == _DATA and (sink := self._session.sink(stream_id, size)):
                if header[4] & _PADDED:
                    raise ProtocolError("padding, which no agent sends")
                start += _HEADER_BYTES
                self._body_left, self._body_sink = size, sink
                self._body_ends = stream_id if header[4] & _END_STREAM else None
            elif end - start < _HEADER_BYTES + size:
                return start
            else:
                self._session.receive(bytes(self._buffer[start : start + _HEADER_BYTES + size]))
                start += _HEADER_BYTES + size


def window_update(stream_id: int, size: int) -> bytes:
    """A frame that lets the sender of a stream (0: of all together) go on for ``size`` bytes."""
    return _WINDOW_UPDATE.pack(_WINDOW_UPDATE_KIND, 0, stream_id, size)


def empty_last_data(stream_id: int) -> bytes:
    """A frame that ends a stream."""
    return _EMPTY_DATA.pack(0, _END_STREAM, stream_id)
