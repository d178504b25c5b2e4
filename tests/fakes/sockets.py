"""The engine's API on a real socket, and a client of WebSockets in a few lines that shares no code with any library."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import socket
import struct
from collections.abc import AsyncIterator, Sequence

from starlette.types import ASGIApp

from squib.api.connections import Server

_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


@contextlib.asynccontextmanager
async def serving(app: ASGIApp, listener: socket.socket, *, end_in_order: bool = False) -> AsyncIterator[None]:
    """The app behind the server that engines have. To end it in order takes 0.2 s."""
    server = Server(app, listener)
    answering = asyncio.create_task(server.answer())
    await server.answering.wait()
    try:
        yield
    finally:
        if end_in_order:
            server.should_exit = server.force_exit = True
            await answering
        answering.cancel()
        for listening in server.servers:
            listening.close()
        for connection in server.server_state.connections:
            connection.transport.abort()
        await asyncio.wait({answering, *server.server_state.tasks})


class RawSocket:
    """RFC 6455 by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.status = 0
        self.body = b""

    async def shake_hands(self, path: str, headers: Sequence[tuple[str, str]] = (("Host", "squib"),)) -> None:
        key = base64.b64encode(os.urandom(16))
        lines = [f"GET {path} HTTP/1.1", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]
        lines += [f"Sec-WebSocket-Key: {key.decode()}", *(f"{name}: {value}" for name, value in headers)]
        self.writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        head = await self.reader.readuntil(b"\r\n\r\n")
        self.status = int(head.split()[1])
        if self.status == 101:
            accept = base64.b64encode(hashlib.sha1(key + _MAGIC).digest())
            assert b"sec-websocket-accept: " + accept.lower() in head.lower()
        else:
            self.body = await self.reader.read()

    def send(self, opcode: int, payload: bytes) -> None:
        mask = os.urandom(4)
        size = len(payload)
        if size < 126:
            head = struct.pack(">BB", 0x80 | opcode, 0x80 | size)
        elif size < 1 << 16:
            head = struct.pack(">BBH", 0x80 | opcode, 0x80 | 126, size)
        else:
            head = struct.pack(">BBQ", 0x80 | opcode, 0x80 | 127, size)
        self.writer.write(head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload)))

    async def receive(self) -> tuple[int, bytes]:
        first, size = await self.reader.readexactly(2)
        assert first & 0x80 and not size & 0x80, "a whole message, not masked"
        if size == 126:
            (size,) = struct.unpack(">H", await self.reader.readexactly(2))
        elif size == 127:
            (size,) = struct.unpack(">Q", await self.reader.readexactly(8))
        return first & 0x0F, await self.reader.readexactly(size)
