"""An HTTP/2 client that shows what is on the wire: every header, and how a stream ended."""

from __future__ import annotations

import asyncio
import json
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
from h2.settings import SettingCodes

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_WINDOW_BYTES = 1 << 24


def new_nonce() -> bytes:
    """Return a nonce for a handshake."""
    return secrets.token_hex(16).encode()


@dataclass
class Answer:
    """A response. ``reset`` is the error code of RST_STREAM if one came before the end."""

    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    reset: int | None = None
    ended: bool = False

    @property
    def status(self) -> int:
        return int(self.headers[":status"])

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> tuple[int, str]:
        """Status and code. The rest of an error is checked on the way."""
        error = self.json()["error"]
        assert self.headers["content-type"] == "application/json"
        assert set(error) == {"code", "message"}
        assert isinstance(error["message"], str)
        assert error["message"]
        return self.status, error["code"]


class RawSession:
    """One session. Requests follow one another."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """See `open`."""
        self.reader, self.writer = reader, writer
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self._answers: dict[int, Answer] = {}

    @classmethod
    async def open(cls, socket_path: Path) -> RawSession:
        """Connect, shake hands and begin a session."""
        session = cls(*await asyncio.open_unix_connection(socket_path))
        await session.shake_hands()
        session.begin()
        return session

    async def sync(self, nonce: bytes, *, version: int = 1) -> bytes:
        """Send a SYNC; return the agent's next line."""
        self.writer.write(b"SQUIB-SYNC %d %s\n" % (version, nonce))
        return await self.reader.readuntil(b"\n")

    async def shake_hands(self) -> None:
        nonce = new_nonce()
        assert await self.sync(nonce) == b"SQUIB-OK 1 %s\n" % nonce
        self.writer.write(b"SQUIB-GO 1 %s\n" % nonce)

    def begin(self) -> None:
        """Send the preface and the settings."""
        self._h2.initiate_connection()
        self._h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: _WINDOW_BYTES})
        self._h2.increment_flow_control_window(_WINDOW_BYTES)
        self._flush()

    async def send(self, method: str, path: str, body: bytes | None = b"", *, end: bool = True) -> tuple[int, Answer]:
        """Send a request, or with ``end=False`` its beginning; ``finish`` waits for the answer."""
        stream = self._h2.get_next_available_stream_id()
        headers = [(":method", method), (":path", path), (":scheme", "http"), (":authority", "squib")]
        self._answers[stream] = Answer()
        self._h2.send_headers(stream, headers, end_stream=end and not body)
        self._flush()
        while body:
            while (room := self._h2.local_flow_control_window(stream)) <= 0:
                await self._receive()
            size = min(room, self._h2.max_outbound_frame_size, len(body))
            self._h2.send_data(stream, body[:size], end_stream=end and size == len(body))
            body = body[size:]
            self._flush()
        return stream, self._answers[stream]

    async def request(self, method: str, path: str, body: object = b"") -> Answer:
        """Send a request and return its whole answer. A body that is not bytes is sent as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        _, answer = await self.send(method, path, data)
        await self.finish(answer)
        return answer

    async def finish(self, answer: Answer) -> None:
        """Wait for the end of an answer."""
        while not answer.ended:
            await self._receive()

    async def wait(self, answer: Answer) -> None:
        """Wait until more has come, of this answer or of another one."""
        assert not answer.ended, bytes(answer.body)
        await self._receive()

    async def wait_for_headers(self, answer: Answer) -> None:
        """Wait until an answer has begun."""
        while not answer.headers:
            await self._receive()

    async def read_until(self, answer: Answer, text: bytes) -> None:
        """Wait until a body holds ``text``."""
        while text not in answer.body:
            assert not answer.ended, bytes(answer.body)
            await self._receive()

    def cancel(self, stream: int) -> None:
        """Reset a stream."""
        self._h2.reset_stream(stream, 8)
        self._flush()

    async def _receive(self) -> None:
        data = await self.reader.read(1 << 16)
        if not data:
            raise ConnectionResetError("the agent closed the connection")
        for event in self._h2.receive_data(data):
            assert not isinstance(event, h2.events.ConnectionTerminated), event
            answer = self._answers.get(getattr(event, "stream_id", None) or 0)
            if answer is None:
                continue
            if isinstance(event, h2.events.ResponseReceived):
                answer.headers = {str(name): str(value) for name, value in event.headers}
            elif isinstance(event, h2.events.DataReceived):
                answer.body += event.data
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                answer.ended = True
            elif isinstance(event, h2.events.StreamReset) and not answer.ended:
                answer.ended, answer.reset = True, int(event.error_code)
        self._flush()

    def _flush(self) -> None:
        self.writer.write(self._h2.data_to_send())

    async def close(self) -> None:
        """Close the connection."""
        self.writer.transport.abort()
        await asyncio.sleep(0)
