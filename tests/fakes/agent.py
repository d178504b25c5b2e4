"""A guest agent in Python: the other end of ``protocol/agent.md``, for tests without a VM.

It runs no real commands, only those of `tests.fakes.processes`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, parse_qsl

from tests.fakes.files import FakeFiles
from tests.fakes.processes import PROGRAMS, FakeProcess, Script, program_of
from tests.fakes.requests import (
    FREEZE,
    POWEROFF,
    SETUP,
    SIGNAL,
    Refused,
    bad_request,
    check_exec,
    check_fields,
    check_path,
    check_user,
    is_size,
    parse_object,
)
from tests.fakes.wire import PREFACE, Input, Session, Stream

_LINE = re.compile(rb"SQUIB-(SYNC|GO) (\d{1,9}) ([0-9a-f]{32})\n\Z")
_MAX_ENDED = 32
SERVED_BARE = {("GET", "/v1/hello"), ("POST", "/v1/setup"), ("POST", "/v1/freeze"), ("POST", "/v1/poweroff")}
"""What an agent serves before it has entropy."""
_MAX_STRING_BYTES = (128 << 10) - 1
_MAX_STRINGS_BYTES = (2 << 20) - 8192


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
    thawed: asyncio.Event = field(default_factory=asyncio.Event)
    """While it is clear, the guest is frozen."""
    writes: list[int] = field(default_factory=list)
    """The sizes of the requests that wrote input."""
    stdin_stalls: bool = False
    """Whether the windows of input are never given back, as by commands that do not read."""
    no_shell: bool = False
    """Whether there is no login shell."""
    has_shell: bool = False
    """Whether ``shell`` commands run, as the words that they are."""
    users: dict[str, str] | None = None
    """The accounts and their home directories; ``None``: every name is one, and has no environment of its own."""
    bare: bool = False
    """Whether it refuses requests until it has got entropy, as a real one does."""
    idle_s: float | None = None
    poweroff: asyncio.Event = field(default_factory=asyncio.Event)
    ignore_poweroff: bool = False
    files: FakeFiles | None = None
    scripts: dict[str, Script] = field(default_factory=dict)
    """Programs of the test's, by name."""
    _next_id: int = 0

    def __post_init__(self) -> None:
        self.typing.set()
        self.thawed.set()
        self._writer: asyncio.StreamWriter | None = None
        if self.files:
            self.files.users = self.users

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of the host: handshakes and sessions until it closes, or another one has a session."""
        source = Input(reader)
        with contextlib.suppress(ConnectionError, EOFError):
            while True:
                await self._shake_hands(source, writer)
                if self._writer not in (None, writer):
                    self._writer.transport.abort()
                self._writer = writer
                self.sessions += 1
                await Session(self, source, writer).run()
        writer.close()

    async def _shake_hands(self, source: Input, writer: asyncio.StreamWriter) -> None:
        nonce = b""
        while True:
            found = _LINE.search(await source.line())
            if found and found[1] == b"SYNC":
                nonce = found[3]
                writer.write(b"SQUIB-OK %d %s\n" % (self.protocol, nonce))
            elif found and (int(found[2]), found[3]) == (self.protocol, nonce):
                nonce = b""
                if await self._read_preface(source):
                    return

    async def _read_preface(self, source: Input) -> bool:
        for expected in PREFACE:
            byte = await source.exactly(1)
            if byte[0] != expected:
                source.put_back(byte)
                return False
        return True

    async def answer(self, stream: Stream, session: Session, stream_id: int) -> None:
        path = stream.path.partition("?")[0]
        if (stream.method, path) not in SERVED_BARE:
            await self.thawed.wait()
            if self.bare and "entropy" not in self.setup:
                raise Refused(503, "not_set_up", "the guest has no entropy of its own yet")
        match stream.method, path.removeprefix("/v1/").split("/") if path.startswith("/v1/") else []:
            case "GET", ["hello"]:
                hello = {
                    "protocol": self.protocol, "agent_version": "fake", "boot_id": "b", "kernel": "6.0-fake",
                    "uptime_ms": 1 + time.monotonic_ns() // 1_000_000,
                    "set_up": self.thawed.is_set() and (not self.bare or "entropy" in self.setup),
                }  # fmt: skip
                await session.send_json(stream_id, 200, hello)
            case "POST", ["setup"]:
                values = parse_object(await stream.read())
                check_fields(values, SETUP)
                self.setup |= values
                if "entropy" in values and not self.thawed.is_set():
                    if values.get("restored"):
                        await self._kill_foreground()
                    self.thawed.set()
                await session.send_json(stream_id, 204, None)
            case "POST", ["freeze"]:
                check_fields(parse_object(await stream.read()), FREEZE)
                self.thawed.clear()
                await session.send_json(stream_id, 204, None)
            case "POST", ["exec"]:
                spec = parse_object(await stream.read())
                if self.poweroff.is_set():
                    raise Refused(503, "powering_off", "the guest is powering off")
                await self._exec(spec, session, stream_id)
            case _, ["processes", *words]:
                await self._processes(stream, words, session, stream_id)
            case "GET", ["account"]:
                await session.send_json(stream_id, 200, self._account(stream.path))
            case _, ["files", *_] if self.files:
                await self.files.answer(stream, session, stream_id)
            case "POST", ["poweroff"]:
                check_fields(parse_object(await stream.read()), POWEROFF)
                await session.send_json(stream_id, 202, None)
                if not self.ignore_poweroff:
                    self.poweroff.set()
            case _:
                raise bad_request(f"no such endpoint: {stream.method} {stream.path}")

    async def _processes(self, stream: Stream, words: list[str], session: Session, stream_id: int) -> None:
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
                self.processes.pop(process_id, None)
                await session.send_json(stream_id, 204, None)
            case "GET", [process_id, "output"]:
                process = self._find(process_id)
                query = dict(parse_qsl(stream.path.partition("?")[2], keep_blank_values=True))
                none = query.pop("none", "") == "1"
                if not all(value.isdecimal() for value in query.values()):
                    raise bad_request("an offset must be a number")
                process.was_read = True
                offsets = {name: int(value) for name, value in query.items()}
                await self._follow(process, session, stream_id, none=none, **offsets)
            case "POST", [process_id, "stdin"]:
                await self._stdin(stream, process_id, session, stream_id)
            case "POST", [process_id, "signal"]:
                process = self._find(process_id)
                values = {"signal": 0} | parse_object(await stream.read())
                check_fields(values, SIGNAL)
                number = values["signal"]
                if process.exit is not None:
                    raise Refused(404, "no_such_process", f'"{process_id}": no such process, or it has ended')
                self.killed.append(f"{process_id} signal {number}")
                process.signalled.put_nowait(number)
                if number in (9, 15):
                    await process.kill(number)
                await session.send_json(stream_id, 204, None)
            case "POST", [process_id, "resize"]:
                process = self._find(process_id)
                size = parse_object(await stream.read())
                if not is_size(size):
                    raise bad_request("rows and cols of a terminal must be 1 to 65535")
                if process.pty is None:
                    raise Refused(409, "no_terminal", process_id)
                if process.exit is not None:
                    raise Refused(404, "no_such_process", f'"{process_id}": no such process, or it has ended')
                await process.resize({name: size[name] for name in ("rows", "cols")})
                await session.send_json(stream_id, 204, None)
            case _:
                raise bad_request(f"no such endpoint: {stream.method} {stream.path}")

    async def _kill_foreground(self) -> None:
        for process in self.processes.values():
            if not process.background and process.exit is None:
                await process.kill()

    def _find(self, process_id: str) -> FakeProcess:
        if process_id not in self.processes:
            raise Refused(404, "no_such_process", f'"{process_id}": no such process, or it has ended')
        return self.processes[process_id]

    async def _stdin(self, stream: Stream, process_id: str, session: Session, stream_id: int) -> None:
        process = self._find(process_id)
        written = 0
        if process.stdin is None or process.stdin_closed or process.exit is not None:
            raise Refused(409, "stdin_closed", process_id)
        async for chunk in stream.chunks():
            if process.exit is not None:
                raise Refused(409, "stdin_closed", process_id)
            await self.typing.wait()
            written += len(chunk)
            process.stdin.put_nowait(chunk)
        self.writes.append(written)
        if "close=1" in stream.path:
            process.stdin.put_nowait(b"\x04" if process.pty else None)
            process.stdin_closed = not process.pty
        await session.send_json(stream_id, 200, {"written": written})

    async def _exec(self, spec: dict[str, Any], session: Session, stream_id: int) -> None:
        check_exec(spec)
        self._check_guest(spec)
        self._next_id += 1
        process = FakeProcess(f"p{self._next_id}", 100 + self._next_id, spec, self.setup.get("env", {}), self.users)
        process.pty, process.scripts = spec.get("pty"), self.scripts
        if spec.get("stdin") or process.pty:
            process.stdin = asyncio.Queue()
        self.processes[process.id] = process
        process.task = asyncio.create_task(process.run())
        process.task.add_done_callback(lambda _: self._forget_oldest())
        if process.background:
            await self._follow(process, session, stream_id)
            return
        try:
            await self._follow(process, session, stream_id)
        except asyncio.CancelledError:
            self.killed.append(process.id)
            raise
        finally:
            self.processes.pop(process.id, None)
            process.task.cancel()

    def _account(self, path: str) -> dict[str, Any]:
        values = parse_qs(path.partition("?")[2], errors="surrogateescape")
        user = values.get("user", ["root"])[0]
        check_user(self.users, user)
        home = (self.users or {}).get(user, "/root" if user == "root" else f"/home/{user}")
        return {"name": user, "uid": os.getuid(), "gid": os.getgid(), "home": home, "shell": "/bin/sh"}

    def _check_guest(self, spec: dict[str, Any]) -> None:
        """Check what a command needs of the guest: its user, working directory, shell and program."""
        check_user(self.users, spec.get("user") or "root")
        if ("shell" in spec and not self.has_shell) or (spec.get("login") and self.no_shell):
            raise Refused(422, "no_shell", "the image has no /bin/sh")
        home = (self.users or {}).get(spec.get("user") or "root", "/")
        if spec.get("cwd"):
            spec["cwd"] = check_path(spec["cwd"], home)
        if self.files and spec.get("cwd") and not self.files.at(spec["cwd"]).is_dir():
            raise Refused(422, "bad_cwd", f"{spec['cwd']}: cannot be entered")
        strings = [os.fsencode(text) for text in program_of(spec)] + [
            os.fsencode(f"{name}={value}") for name, value in spec.get("env", {}).items()
        ]
        if max(map(len, strings)) > _MAX_STRING_BYTES or sum(map(len, strings)) > _MAX_STRINGS_BYTES:
            raise Refused(422, "arguments_too_long", "the arguments and the environment are too long")
        program = program_of(spec)[0]
        if "/" in program and self.files:
            path = self.files.at(program)
            if path.exists() and (path.is_dir() or not os.access(path, os.X_OK)):
                raise Refused(422, "not_executable", f"{program}: permission denied")
            program = path.name if path.exists() else ""
        if program not in PROGRAMS | self.scripts.keys():
            raise Refused(422, "command_not_found", f"{program}: not found in PATH")

    def disconnect(self) -> None:
        """Close the connection, as a guest that ends. What was sent before still arrives."""
        if self._writer:
            self._writer.close()

    async def forget_processes(self) -> None:
        """End all commands, and count from ``p1`` again."""
        for process in list(self.processes.values()):
            await process.kill()
        self.processes.clear()
        self.killed.clear()
        self._next_id = 0

    def _forget_oldest(self) -> None:
        ended = [process.id for process in self.processes.values() if process.background and process.exit]
        for process_id in ended[:-_MAX_ENDED]:
            del self.processes[process_id]

    async def _follow(self, process: FakeProcess, session: Session, stream_id: int, **options: Any) -> None:
        session.headers(stream_id, 200, "application/vnd.squib.frames")
        await process.follow(lambda data: session.data(stream_id, data), idle_s=self.idle_s, **options)
        await session.data(stream_id, b"", end=True)
