"""A guest agent in Python: the other end of ``protocol/agent.md``, for tests without a VM.

It runs no real commands, only those of `tests.fakes.processes`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from tests.fakes.files import FakeFiles, Refused
from tests.fakes.processes import PROGRAMS, FakeProcess

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
    processes: dict[str, FakeProcess] = field(default_factory=dict)
    typing: asyncio.Event = field(default_factory=asyncio.Event)
    """While it is clear, no process reads its input."""
    writes: list[int] = field(default_factory=list)
    """The sizes of the requests that wrote input."""
    stdin_stalls: bool = False
    """Whether the windows of input are never given back, as by commands that do not read."""
    no_shell: bool = False
    idle_s: float | None = None
    poweroff: asyncio.Event = field(default_factory=asyncio.Event)
    ignore_poweroff: bool = False
    files: FakeFiles | None = None
    _next_id: int = 0

    def __post_init__(self) -> None:
        self.typing.set()

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
            case _, ["processes", *words]:
                await self._processes(stream, words, session, stream_id)
            case _, ["files", *_] if self.files:
                await self.files.answer(stream, session, stream_id)
            case "POST", ["poweroff"]:
                await session.send_json(stream_id, 202, {})
                if not self.ignore_poweroff:
                    self.poweroff.set()
            case _:
                raise AgentFailure(404, "bad_request", stream.path)

    async def _processes(self, stream: Stream, words: list[str], session: _Session, stream_id: int) -> None:
        match stream.method, words:
            case "GET", []:
                listed = [process.describe() for process in self.processes.values()]
                await session.send_json(stream_id, 200, {"processes": listed})
            case "GET", [process_id]:
                await session.send_json(stream_id, 200, self._find(process_id).describe())
            case "DELETE", [process_id]:
                process = self._find(process_id)
                if process.exit is None:
                    self.killed.append(process_id)
                await process.kill()
                del self.processes[process_id]
                await session.send_json(stream_id, 204, None)
            case "GET", [process_id, "output"]:
                process = self._find(process_id)
                process.was_read = True
                query = {name: int(value) for name, value in parse_qsl(stream.path.partition("?")[2])}
                await self._follow(process, session, stream_id, none=bool(query.pop("none", 0)), **query)
            case "POST", [process_id, "stdin"]:
                await self._stdin(stream, process_id, session, stream_id)
            case "POST", [process_id, "signal"]:
                number = json.loads(await stream.read())["signal"]
                process = self._find(process_id)
                if process.exit is not None:
                    raise AgentFailure(404, "no_such_process", process_id)
                self.killed.append(f"{process_id} signal {number}")
                if number in (9, 15):
                    await process.kill(number)
                await session.send_json(stream_id, 204, None)
            case "POST", [process_id, "resize"]:
                process = self._find(process_id)
                if process.pty is None:
                    raise AgentFailure(409, "no_terminal", process_id)
                await process.resize(json.loads(await stream.read()))
                await session.send_json(stream_id, 204, None)
            case _:
                raise AgentFailure(404, "bad_request", stream.path)

    def _find(self, process_id: str) -> FakeProcess:
        if process_id not in self.processes:
            raise AgentFailure(404, "no_such_process", process_id)
        return self.processes[process_id]

    async def _stdin(self, stream: Stream, process_id: str, session: _Session, stream_id: int) -> None:
        process = self._find(process_id)
        written = 0
        async for chunk in stream.chunks():
            if process.stdin is None or process.exit is not None:
                raise AgentFailure(409, "stdin_closed", process_id)
            await self.typing.wait()
            written += len(chunk)
            process.stdin.put_nowait(chunk)
        self.writes.append(written)
        if "close=1" in stream.path and process.stdin:
            process.stdin.put_nowait(None)
        await session.send_json(stream_id, 200, {"written": written})

    async def _exec(self, spec: dict[str, Any], session: _Session, stream_id: int) -> None:
        if "shell" in spec or (spec.get("login") and self.no_shell):
            raise AgentFailure(422, "no_shell", "the image has no /bin/sh")
        program = spec["argv"][0] if "argv" in spec else "tty"
        if program not in PROGRAMS:
            raise AgentFailure(422, "command_not_found", f"{program}: not found in PATH")
        self._next_id += 1
        process = FakeProcess(f"p{self._next_id}", 100 + self._next_id, spec, self.setup.get("env", {}))
        process.pty = spec.get("pty")
        if spec.get("stdin") or process.pty:
            process.stdin = asyncio.Queue()
        self.processes[process.id] = process
        process.task = asyncio.create_task(process.run())
        if process.background:
            await self._follow(process, session, stream_id)
            return
        try:
            await self._follow(process, session, stream_id)
        except asyncio.CancelledError:
            self.killed.append(process.id)
            raise
        finally:
            del self.processes[process.id]
            process.task.cancel()

    async def _follow(self, process: FakeProcess, session: _Session, stream_id: int, **options: Any) -> None:
        session.headers(stream_id, 200, "application/vnd.squib.protocol.frames")
        await process.follow(lambda data: session.data(stream_id, data), idle_s=self.idle_s, **options)
        await session.data(stream_id, b"", end=True)


class _Session:
    """One HTTP/2 session."""

    def __init__(self, agent: FakeAgent, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._agent, self._reader, self._writer = agent, reader, writer
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self._streams: dict[int, Stream] = {}
        self._window = asyncio.Event()

    async def run(self) -> None:
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(15 * 65_535)  # sixteen streams' windows, as the agent's is
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
