"""A guest agent in Python: the other end of ``protocol/agent.md``, for tests without a VM.

It runs no real commands, only these, given as ``argv``: ``true``, ``false``, ``exit N``, ``echo WORD...``,
``err WORD...`` (echo to standard error), ``cat`` (needs stdin), ``sleep`` (for ever), ``spam`` (prints for ever),
``env``, ``garbage`` (sends what is no frame) and ``vanish`` (the guest ends).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from squib.frames import FrameKind, encode, encode_json
from tests.fakes.files import FakeFiles, Refused

_LINE = re.compile(rb"SQUIB-(SYNC|GO) (\d+) ([0-9a-f]{32})\n")


class AgentFailure(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        self.status, self.code = status, code
        super().__init__(message)


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


@dataclass
class FakeAgent:
    """What the guest has seen, and how it behaves."""

    protocol: int = 1
    setup: dict[str, Any] = field(default_factory=dict)
    killed: list[str] = field(default_factory=list)
    sessions: int = 0
    stdin: dict[str, asyncio.Queue[bytes | None]] = field(default_factory=dict)
    poweroff: asyncio.Event = field(default_factory=asyncio.Event)
    ignore_poweroff: bool = False
    files: FakeFiles | None = None
    _next_id: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of the host: handshakes and sessions until it closes."""
        with contextlib.suppress(ConnectionError):
            while await self._handshake(reader, writer):
                self.sessions += 1
                await _Session(self, reader, writer).run()
        writer.close()

    async def _handshake(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        nonce = b""
        line = b""
        while True:
            piece = await reader.read(1)
            if not piece:
                return False
            line = (line + piece)[-128:]
            if not (found := _LINE.search(line)):
                continue
            line = b""
            if found[1] == b"SYNC":
                nonce = found[3]
                writer.write(b"SQUIB-OK %d %s\n" % (self.protocol, nonce))
            elif found[3] == nonce:
                return True

    async def answer(self, stream: Stream, session: _Session, stream_id: int) -> None:
        match stream.method, stream.path.partition("?")[0].split("/")[2:]:
            case "GET", ["hello"]:
                hello = {"protocol": self.protocol, "agent_version": "fake", "boot_id": "b", "kernel": "6.0-fake"}
                await session.send_json(stream_id, 200, hello)
            case "POST", ["setup"]:
                self.setup |= json.loads(await stream.read())
                await session.send_json(stream_id, 204, None)
            case "POST", ["exec"]:
                await self._exec(json.loads(await stream.read()), session, stream_id)
            case "POST", ["processes", process_id, "stdin"]:
                await self._stdin(stream, process_id, session, stream_id)
            case "POST", ["processes", process_id, "signal"]:
                self.killed.append(f"{process_id} signal {json.loads(await stream.read())['signal']}")
                await session.send_json(stream_id, 204, None)
            case _, ["files", *_] if self.files:
                await self.files.answer(stream, session, stream_id)
            case "POST", ["poweroff"]:
                await session.send_json(stream_id, 202, {})
                if not self.ignore_poweroff:
                    self.poweroff.set()
            case _:
                raise AgentFailure(404, "bad_request", stream.path)

    async def _stdin(self, stream: Stream, process_id: str, session: _Session, stream_id: int) -> None:
        if process_id not in self.stdin:
            raise AgentFailure(404, "no_such_process", process_id)
        written = 0
        async for chunk in stream.chunks():
            written += len(chunk)
            self.stdin[process_id].put_nowait(chunk)
        if "close=1" in stream.path:
            self.stdin[process_id].put_nowait(None)
        await session.send_json(stream_id, 200, {"written": written})

    async def _exec(self, spec: dict[str, Any], session: _Session, stream_id: int) -> None:
        if "shell" in spec:
            raise AgentFailure(422, "no_shell", "the image has no /bin/sh")
        program, *words = spec["argv"]
        if program not in ("true", "false", "exit", "echo", "err", "cat", "sleep", "spam", "env", "garbage", "vanish"):
            raise AgentFailure(422, "command_not_found", f"{program}: not found in PATH")
        self._next_id += 1
        process_id = f"p{self._next_id}"
        if spec.get("stdin"):
            self.stdin[process_id] = asyncio.Queue()
        session.headers(stream_id, 200, "application/vnd.squib.frames")
        await session.data(stream_id, encode_json(FrameKind.STARTED, {"id": process_id, "pid": 100 + self._next_id}))
        end: dict[str, Any] = {"exit_code": 0, "signal": None, "timed_out": False, "duration_ms": 1}
        try:
            timeout_ms = spec.get("timeout_ms")
            async with asyncio.timeout(timeout_ms / 1000 if timeout_ms else None):
                end["exit_code"] = await self._run(program, words, spec, process_id, session, stream_id)
        except TimeoutError:
            end |= {"exit_code": None, "signal": 9, "timed_out": True}
        except asyncio.CancelledError:
            self.killed.append(process_id)
            raise
        finally:
            self.stdin.pop(process_id, None)
        await session.data(stream_id, encode_json(FrameKind.EXIT, end), end=True)

    async def _run(
        self, program: str, words: list[str], spec: dict[str, Any], process_id: str, session: _Session, stream_id: int
    ) -> int:
        match program:
            case "false":
                return 1
            case "exit":
                return int(words[0])
            case "echo" | "err":
                kind = FrameKind.STDOUT if program == "echo" else FrameKind.STDERR
                text = " ".join(words) + "\n"
                await session.data(stream_id, encode(kind, text.encode("utf-8", "surrogateescape")))
            case "env":
                env = self.setup.get("env", {}) | spec.get("env", {})
                await session.data(stream_id, encode(FrameKind.STDOUT, json.dumps(env).encode()))
            case "cat":
                offset = 0
                while (chunk := await self.stdin[process_id].get()) is not None:
                    for start in range(0, len(chunk), 65536):
                        piece = chunk[start : start + 65536]
                        await session.data(stream_id, encode(FrameKind.STDOUT, piece, offset))
                        offset += len(piece)
            case "sleep":
                await asyncio.Event().wait()
            case "spam":
                while True:
                    await session.data(stream_id, encode(FrameKind.STDOUT, b"y\n" * 32768))
            case "garbage":
                await session.data(stream_id, b"\x63" * 64)
            case "vanish":
                os._exit(0)
        return 0


class _Session:
    """One HTTP/2 session."""

    def __init__(self, agent: FakeAgent, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._agent, self._reader, self._writer = agent, reader, writer
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self._streams: dict[int, Stream] = {}
        self._window = asyncio.Event()

    async def run(self) -> None:
        self._h2.initiate_connection()
        self._flush()
        try:
            while data := await self._reader.read(65536):
                for event in self._h2.receive_data(data):
                    self._handle(event)
                self._flush()
        except h2.exceptions.ProtocolError:
            self._flush()
        finally:
            for stream in self._streams.values():
                if stream.task:
                    stream.task.cancel()

    def _handle(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RequestReceived():
                headers = dict(event.headers)
                stream = self._streams[event.stream_id] = Stream(headers[":path"], headers[":method"])
                stream.task = asyncio.create_task(self._serve(stream, event.stream_id))
            case h2.events.DataReceived():
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                self._streams[event.stream_id].body.put_nowait(event.data)
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
        except (AgentFailure, Refused) as failure:
            error = {"error": {"code": failure.code, "message": str(failure)}}
            await self.send_json(stream_id, failure.status, error)
        except (h2.exceptions.StreamClosedError, ConnectionError):
            pass
        except Exception as fault:  # noqa: BLE001 (or the test would wait for an answer that never comes)
            error = {"error": {"code": "internal", "message": f"the fake agent: {fault!r}"}}
            await self.send_json(stream_id, 500, error)

    def headers(self, stream_id: int, status: int, content_type: str, *, length: int | None = None) -> None:
        headers = [(":status", str(status)), ("content-type", content_type)]
        if length is not None:
            headers.append(("squib-length", str(length)))
        self._h2.send_headers(stream_id, headers)
        self._flush()

    def reset(self, stream_id: int) -> None:
        self._h2.reset_stream(stream_id, 2)
        self._flush()

    async def send_json(self, stream_id: int, status: int, value: object) -> None:
        self.headers(stream_id, status, "application/json")
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
