"""The process sessions of a `FakeAgent`: their output is kept, and any number of readers may follow it.

It runs no real commands, only these, given as ``argv``: ``true``, ``false``, ``exit N``, ``echo WORD...``,
``err WORD...`` (echo to standard error), ``cat`` (needs stdin), ``sleep`` (for ever), ``spam`` (prints for ever),
``env``, ``pwd``, ``garbage`` (sends an invalid frame), ``vanish`` (the guest ends), ``flood N`` (N KiB, numbered) and
``tty``, which is what a login shell is too: it prints ``$ ``, echoes what is typed, tells a new size as ``[ROWSxCOLS]``
and ends with status N at ``exit N`` and a carriage return, and with 0 at Ctrl-D. A test adds programs as scripts.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from squib.protocol.frames import FrameKind, encode, encode_json

PROGRAMS = {
    "true", "false", "exit", "echo", "err", "cat", "sleep", "spam", "env", "pwd", "garbage", "vanish", "flood", "tty",
    "stubborn",
}  # fmt: skip
FOREGROUND_BYTES, BACKGROUND_BYTES = 128 << 10, 1 << 20
_EXIT = re.compile(rb"exit ([0-9]+)\r")


def program_of(spec: dict[str, Any]) -> list[str]:
    """What a request runs, as words."""
    if "shell" in spec:
        return shlex.split(spec["shell"])
    return spec.get("argv") or ["tty"]


def shown(argv: list[str]) -> list[str]:
    """Shorten arguments as the agent does for listings."""
    left, words = 2048, []
    for word in argv:
        if left > 0:
            words.append(word[:left])
        left -= len(word) + 1
    return words


@dataclass(eq=False)
class Reader:
    """A reader of the output. ``taken`` is how many bytes of both streams it has read."""

    taken: int = 0


@dataclass
class Piece:
    """Output that is kept. ``start`` counts both streams, ``offset`` its own."""

    start: int
    kind: FrameKind | None
    offset: int
    payload: bytes


Script = Callable[["FakeProcess"], Awaitable["int | dict[str, Any]"]]
"""A program: returns its status, or the fields of its end."""


@dataclass
class FakeProcess:
    id: str
    pid: int
    spec: dict[str, Any]
    env: dict[str, str]
    users: dict[str, str] | None = None
    stdin: asyncio.Queue[bytes | None] | None = None
    stdin_closed: bool = False
    pty: dict[str, int] | None = None
    exit: dict[str, Any] | None = None
    readers: list[Reader] = field(default_factory=list)
    watchers: int = 0
    pieces: deque[Piece] = field(default_factory=deque)
    ends: dict[FrameKind, int] = field(default_factory=lambda: {FrameKind.STDOUT: 0, FrameKind.STDERR: 0})
    total: int = 0
    was_read: bool = False
    """By others than the request that started it: until then a reader is waited for."""
    resized: list[dict[str, int]] = field(default_factory=list)
    signalled: asyncio.Queue[int] = field(default_factory=asyncio.Queue)
    """Signals that were sent to it."""
    scripts: dict[str, Script] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def background(self) -> bool:
        return bool(self.spec.get("background"))

    def describe(self) -> dict[str, Any]:
        argv = ["/bin/sh", "-c", self.spec["shell"]] if "shell" in self.spec else self.spec.get("argv") or ["-sh"]
        ranges = {
            name: {"start": min((p.offset for p in self.pieces if p.kind is kind), default=end), "end": end}
            for name, kind, end in (
                ("stdout", FrameKind.STDOUT, self.ends[FrameKind.STDOUT]),
                ("stderr", FrameKind.STDERR, self.ends[FrameKind.STDERR]),
            )
        }
        return {
            "id": self.id, "pid": self.pid, "argv": shown(argv), "user": self.spec.get("user", "root"),
            "started_unix_ms": 1_763_775_600_000, "background": self.background, "pty": self.pty,
            "stdin": bool(self.spec.get("stdin") and not self.pty), "readers": len(self.readers) + self.watchers,
            "exit": self.exit,
        } | ranges  # fmt: skip

    async def run(self) -> None:
        """Run the program to its end."""
        end: dict[str, Any] = {"exit_code": 0, "signal": None, "timed_out": False, "duration_ms": 1}
        timeout_ms = self.spec.get("timeout_ms")
        try:
            async with asyncio.timeout(timeout_ms / 1000 if timeout_ms else None):
                script = self.scripts.get(program_of(self.spec)[0])
                result = await (script(self) if script else self._program())
                end |= result if isinstance(result, dict) else {"exit_code": result}
        except TimeoutError:
            end |= {"exit_code": None, "signal": 9, "timed_out": True}
        await self._end(end)

    async def kill(self, signal: int = 9) -> None:
        """End it by a signal."""
        if self.task and not self.task.done():
            self.task.cancel()
            await asyncio.wait([self.task])
        if self.exit is None:
            await self._end({"exit_code": None, "signal": signal, "timed_out": False, "duration_ms": 1})

    async def _end(self, end: dict[str, Any]) -> None:
        async with self.changed:
            self.exit = end
            self.changed.notify_all()

    async def follow(
        self,
        send: Callable[[bytes], Awaitable[None]],
        *,
        stdout: int = 0,
        stderr: int = 0,
        none: bool = False,
        idle_s: float | None = None,
    ) -> None:
        """Send the frames from these offsets on, to the last."""
        offsets = {FrameKind.STDOUT: stdout, FrameKind.STDERR: stderr}
        reader = Reader(self.pieces[0].start if self.pieces else self.total)
        if none:
            self.watchers += 1
        else:
            self.readers.append(reader)
        try:
            await send(encode_json(FrameKind.STARTED, {"id": self.id, "pid": self.pid}))
            while True:
                for piece in [piece for piece in self.pieces if piece.start >= reader.taken and not none]:
                    skip = max(0, offsets.get(piece.kind, 0) - piece.offset) if piece.kind else 0
                    if piece.kind is None:
                        await send(piece.payload)
                    elif skip < len(piece.payload):
                        await send(encode(piece.kind, piece.payload[skip:], piece.offset + skip))
                    async with self.changed:
                        reader.taken = piece.start + len(piece.payload)
                        self.changed.notify_all()
                async with self.changed:
                    if self.exit and (none or reader.taken >= self.total):
                        break
                    try:
                        async with asyncio.timeout(idle_s):
                            await self.changed.wait_for(lambda: self.exit or (not none and reader.taken < self.total))
                    except TimeoutError:
                        await send(encode(FrameKind.IDLE, b""))
        finally:
            if none:
                self.watchers -= 1
            else:
                self.readers.remove(reader)
            await asyncio.shield(asyncio.ensure_future(self._notify()))
        await send(encode_json(FrameKind.EXIT, self.exit))

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def write(self, kind: FrameKind | None, payload: bytes) -> None:
        """Print; without a kind, send bytes as they are."""
        limit = BACKGROUND_BYTES if self.background else FOREGROUND_BYTES

        def is_room() -> bool:
            slowest = min((reader.taken for reader in self.readers), default=self.total if self.was_read else 0)
            return self.total - slowest < limit

        await asyncio.sleep(0)
        async with self.changed:
            await self.changed.wait_for(is_room)
            offset = self.ends.get(kind, 0) if kind else 0
            self.pieces.append(Piece(self.total, kind, offset, payload))
            self.total += len(payload)
            if kind:
                self.ends[kind] += len(payload)
            while self.total - self.pieces[0].start > limit + len(payload):
                self.pieces.popleft()
            self.changed.notify_all()

    async def _program(self) -> int:
        program, *words = program_of(self.spec)
        match program.rpartition("/")[2]:
            case "false":
                return 1
            case "exit":
                return int(words[0])
            case "echo" | "err":
                kind = FrameKind.STDOUT if program == "echo" else FrameKind.STDERR
                await self.write(kind, (" ".join(words) + "\n").encode("utf-8", "surrogateescape"))
            case "env":
                await self.write(FrameKind.STDOUT, json.dumps(self._environment()).encode())
            case "pwd":
                await self.write(FrameKind.STDOUT, os.fsencode(self.spec.get("cwd") or self._home()) + b"\n")
            case "flood":
                for number in range(int(words[0])):
                    await self.write(FrameKind.STDOUT, b"%01023d\n" % number)
            case "cat":
                while self.stdin and (chunk := await self.stdin.get()) is not None:
                    for start in range(0, len(chunk), 65536):
                        await self.write(FrameKind.STDOUT, chunk[start : start + 65536])
            case "sleep" | "stubborn":
                await asyncio.Event().wait()
            case "spam":
                while True:
                    await self.write(FrameKind.STDOUT, b"y\n" * 32768)
            case "garbage":
                await self.write(None, b"\x63" * 64)
            case "vanish":
                os._exit(0)
            case "tty":
                return await self._tty()
        return 0

    def _home(self) -> str:
        return (self.users or {}).get(self.spec.get("user") or "root", "/")

    def _environment(self) -> dict[str, str]:
        own = self.env | self.spec.get("env", {})
        if self.users is None:
            return own
        user = self.spec.get("user") or "root"
        account = "root" if self.spec.get("sudo") else user
        env = {"PATH": os.defpath, "HOME": self._home(), "USER": account, "LOGNAME": account, "SHELL": "/bin/sh"}
        if self.spec.get("sudo"):
            env |= {"SUDO_USER": user, "SUDO_UID": str(os.getuid()), "SUDO_GID": str(os.getgid())}
        if self.pty:
            env["TERM"] = "xterm-256color"
        return env | own

    async def _tty(self) -> int:
        assert self.stdin
        await self.write(FrameKind.STDOUT, b"$ ")
        typed = b""
        while True:
            chunk = await self.stdin.get()
            if chunk is None:
                return 0
            typed = (typed + chunk)[-64:]
            for start in range(0, len(chunk), 65536):
                await self.write(FrameKind.STDOUT, chunk[start : start + 65536])
            if found := _EXIT.search(typed):
                return int(found[1])
            if b"\x04" in chunk:
                return 0

    async def resize(self, size: dict[str, int]) -> None:
        self.pty = size
        self.resized.append(size)
        await self.write(FrameKind.STDOUT, b"[%dx%d]" % (size["rows"], size["cols"]))
