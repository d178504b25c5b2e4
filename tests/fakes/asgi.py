"""Requests by hand: paths that no client would send, bodies in pieces, and clients that leave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from starlette.types import ASGIApp, Message

JSON = (("content-type", "application/json"),)


@dataclass
class Request:
    """A request to an ASGI app. ``path`` is as on the request line.

    `leave` is the client's going away; `reads` cleared keeps it from reading the answer. `head` is set with the
    answer's status, `arrived` with each piece of its body. An ``unfinished`` body ends with `finish`, an ``endless``
    one repeats its last piece until the answer is there.
    """

    method: str
    path: str
    body: bytes | Sequence[bytes] = b""
    headers: Sequence[tuple[str, str]] = JSON
    host: str | None = "squib"
    unfinished: bool = False
    endless: bool = False
    status: int = 0
    answered: list[tuple[str, str]] = field(default_factory=list)
    complete: bool = False
    received: bytearray = field(default_factory=bytearray)
    leave: asyncio.Event = field(default_factory=asyncio.Event)
    reads: asyncio.Event = field(default_factory=asyncio.Event)
    head: asyncio.Event = field(default_factory=asyncio.Event)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._pieces = [self.body] if isinstance(self.body, bytes) else list(self.body)
        self._finished = asyncio.Event()
        self._all_sent = asyncio.Event()
        self.reads.set()

    @property
    def json(self) -> Any:
        return json.loads(self.received)

    @property
    def error(self) -> Any:
        return self.json["error"]

    def finish(self) -> None:
        """End a body that was ``unfinished``."""
        self._all_sent.set()

    async def send_to(self, app: ASGIApp) -> Request:
        """Send it and read the answer to its end."""
        path, _, query = self.path.partition("?")
        headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in self.headers]
        if self.host is not None:
            headers.append((b"host", self.host.encode("latin-1")))
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},  # as uvicorn's
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": unquote(path),
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": headers,
            "client": None,
            "server": ("squib", None),
            "state": {},
        }
        try:
            await app(scope, self._receive, self._send)
        finally:
            self._finished.set()
        return self

    async def _receive(self) -> Message:
        if self.endless and len(self._pieces) == 1 and not self._finished.is_set():
            await asyncio.sleep(0)
            return {"type": "http.request", "body": self._pieces[0], "more_body": True}
        if self._pieces:
            piece = self._pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(self._pieces) or self.unfinished}
        events = [self.leave, self._finished] + [self._all_sent] * self.unfinished
        waiting = {asyncio.ensure_future(event.wait()) for event in events}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiter in waiting:
                waiter.cancel()
        if self.unfinished and self._all_sent.is_set():
            self.unfinished = False
            return {"type": "http.request", "body": b"", "more_body": False}
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.answered = [(name.decode(), value.decode()) for name, value in message["headers"]]
            self.head.set()
        else:
            self.received += message.get("body", b"")
            self.complete = not message.get("more_body", False)
            if message.get("body"):
                self.arrived.set()
            await self.reads.wait()


@dataclass
class Handshake:
    """A WebSocket to an ASGI app. ``messages`` are sent one after the other; the client is gone when a message of the
    server holds ``goes_at``. `status` is 101 if it was let in.
    """

    path: str
    messages: Sequence[str | bytes] = ()
    goes_at: str | None = None
    headers: Sequence[tuple[str, str]] = ()
    host: str | None = "squib"
    extensions: tuple[str, ...] = ("websocket.http.response",)
    status: int = 0
    body: bytes = b""
    sent: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        texts = [{"text": item} if isinstance(item, str) else {"bytes": item} for item in self.messages]
        self._incoming: list[Message] = [{"type": "websocket.connect"}]
        self._incoming += [{"type": "websocket.receive"} | text for text in texts]

    @property
    def error(self) -> Any:
        return json.loads(self.body)["error"]

    async def send_to(self, app: ASGIApp) -> Handshake:
        """Connect, send the messages, and stay until the server closes the connection."""
        headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in self.headers]
        if self.host is not None:
            headers.append((b"host", self.host.encode("latin-1")))
        path, _, query = self.path.partition("?")
        scope = {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "ws",
            "path": unquote(path),
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": headers,
            "client": None,
            "server": ("squib", None),
            "subprotocols": [],
            "state": {},
            "extensions": {name: {} for name in self.extensions},
        }
        await app(scope, self._receive, self._send)
        return self

    async def _receive(self) -> Message:
        if self._incoming:
            return self._incoming.pop(0)
        return await asyncio.Future()

    async def _send(self, message: Message) -> None:
        self.sent.append(message)
        if self.goes_at and self.goes_at in str(message.get("text")):
            self._incoming.append({"type": "websocket.disconnect", "code": 1006})
            raise OSError("the client is gone")
        match message["type"]:
            case "websocket.accept":
                self.status = 101
            case "websocket.close" if not self.status:
                self.status = 403
            case "websocket.http.response.start":
                self.status = message["status"]
            case "websocket.http.response.body":
                self.body += message.get("body", b"")
