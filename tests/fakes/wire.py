"""The wire of a fake agent: its byte stream, and one HTTP/2 session on it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from h2.settings import SettingCodes

from tests.fakes.requests import Refused

MAX_FRAME_BYTES = 262_144
MAX_LINE_BYTES = 128
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Input:
    """The bytes that the host sends. A session can put back bytes that belong to the next one."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._data = bytearray()

    async def _fill(self) -> None:
        data = await self._reader.read(1 << 16)
        if not data:
            raise EOFError
        self._data += data

    async def exactly(self, size: int) -> bytes:
        """Read ``size`` bytes."""
        while len(self._data) < size:
            await self._fill()
        return self._cut(size)

    async def line(self) -> bytes:
        """Read up to a newline; return the end of that."""
        while (end := self._data.find(b"\n")) < 0:
            del self._data[:-MAX_LINE_BYTES]
            await self._fill()
        return self._cut(end + 1)[-MAX_LINE_BYTES - 1 :]

    def put_back(self, data: bytes) -> None:
        """Put back ``data``, to be read next."""
        self._data[:0] = data

    def _cut(self, size: int) -> bytes:
        data = bytes(self._data[:size])
        del self._data[:size]
        return data


@dataclass
class Stream:
    path: str
    method: str
    body: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue)
    task: asyncio.Task[None] | None = None

    async def read(self) -> bytes:
        return b"".join([chunk async for chunk in self.chunks()])

    async def chunks(self) -> AsyncIterator[bytes]:
        while (chunk := await self.body.get()) is not None:
            yield chunk


class Answers(Protocol):
    """The handler of a session's requests."""

    stdin_stalls: bool

    async def answer(self, stream: Stream, session: Session, stream_id: int) -> None: ...


class Session:
    """One HTTP/2 session."""

    def __init__(self, agent: Answers, source: Input, writer: asyncio.StreamWriter) -> None:
        self._agent, self._source, self._writer = agent, source, writer
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self._streams: dict[int, Stream] = {}
        self._window = asyncio.Event()

    async def run(self) -> None:
        self._h2.initiate_connection()
        self._h2.update_settings({SettingCodes.MAX_FRAME_SIZE: MAX_FRAME_BYTES})
        self._h2.increment_flow_control_window(15 * 65_535)  # sixteen streams' windows, as the agent's is
        self._receive(PREFACE)
        try:
            while True:
                header = await self._source.exactly(9)
                size = int.from_bytes(header[:3], "big")
                if size > MAX_FRAME_BYTES:  # another handshake has begun
                    self._source.put_back(header)
                    return
                self._receive(header + await self._source.exactly(size))
        except h2.exceptions.ProtocolError:
            self._flush()
        finally:
            for stream in self._streams.values():
                if stream.task:
                    stream.task.cancel()

    def _receive(self, data: bytes) -> None:
        for event in self._h2.receive_data(data):
            self._handle(event)
        self._flush()

    def _handle(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RequestReceived():
                headers = dict(event.headers)
                stream = self._streams[event.stream_id] = Stream(headers[":path"], headers[":method"])
                stream.task = asyncio.create_task(self._serve(stream, event.stream_id))
            case h2.events.DataReceived():
                stream = self._streams[event.stream_id]
                if not (self._agent.stdin_stalls and "/stdin" in stream.path):
                    self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                if event.data:  # the end may come in an empty frame, after the process's own
                    stream.body.put_nowait(event.data)
            case h2.events.StreamEnded():
                self._streams[event.stream_id].body.put_nowait(None)
            case h2.events.StreamReset():
                if task := self._streams[event.stream_id].task:
                    task.cancel()
            case h2.events.WindowUpdated() | h2.events.RemoteSettingsChanged():
                self._window.set()

    async def _serve(self, stream: Stream, stream_id: int) -> None:
        try:
            await self._agent.answer(stream, self, stream_id)
        except Refused as failure:
            error = {"error": {"code": failure.code, "message": str(failure)}}
            await self.send_json(stream_id, failure.status, error)
        except (h2.exceptions.StreamClosedError, ConnectionError):
            pass
        except Exception as fault:  # noqa: BLE001 (or the test would wait for an answer that never comes)
            error = {"error": {"code": "internal", "message": f"the fake agent: {fault!r}"}}
            await self.send_json(stream_id, 500, error)

    def headers(self, stream_id: int, status: int, content_type: str | None, *, length: int | None = None) -> None:
        headers = [(":status", str(status))]
        if content_type:
            headers.append(("content-type", content_type))
        if length is not None:
            headers.append(("squib-length", str(length)))
        self._h2.send_headers(stream_id, headers)
        self._flush()

    def reset(self, stream_id: int) -> None:
        self._h2.reset_stream(stream_id, 2)
        self._flush()

    async def send_json(self, stream_id: int, status: int, value: object) -> None:
        self.headers(stream_id, status, None if value is None else "application/json")
        await self.data(stream_id, b"" if value is None else json.dumps(value).encode(), end=True)

    async def data(self, stream_id: int, data: bytes, *, end: bool = False) -> None:
        view = memoryview(data)
        while view:
            size = min(self._h2.local_flow_control_window(stream_id), self._h2.max_outbound_frame_size, len(view))
            if size <= 0:
                self._window.clear()
                await self._window.wait()
                continue
            self._h2.send_data(stream_id, bytes(view[:size]))
            view = view[size:]
            self._flush()
            await self._writer.drain()
        if end:
            self._h2.end_stream(stream_id)
            self._flush()

    def _flush(self) -> None:
        self._writer.write(self._h2.data_to_send())
