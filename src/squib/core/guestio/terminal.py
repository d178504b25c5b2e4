"""Terminals: a process session of the background with a pty, one reader of it, and what is typed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass

from squib.core.engine import Engine
from squib.core.guestio import exec, processes, stall
from squib.errors import AgentUnreachable, NoSuchProcess, NoTerminal, StdinClosed
from squib.guest.sessions import parse_started
from squib.models import ExecRequest, PtySize
from squib.protocol.frames import CommandEnd, Frame, FrameDecoder, FrameError, FrameKind

_MAX_WAITING_BYTES = 1 << 16
_PAUSED_S = 0.25


@dataclass(frozen=True)
class Gap:
    """The next output is not what follows the last: it begins at ``offset``."""

    offset: int


@dataclass(frozen=True)
class Output:
    """What a terminal has printed; empty after some time in which it printed nothing."""

    data: bytes


class Terminal:
    """One reader of a terminal, and its way to type. Made by `start_terminal` and `attach_terminal`; `aclose` it."""

    def __init__(self, engine: Engine, ref: str, command: exec.Command, position: int | None) -> None:
        self._engine = engine
        self._ref = ref
        self._command = command
        self._batches = _decode(exec.receive(command))
        self._first: list[Frame] = []
        self._position = position
        self.process_id = ""
        self.pid = 0

    async def begin(self) -> None:
        """Read its id. Raises `AgentUnreachable`."""
        self._first = await anext(self._batches, [])
        if not self._first or self._first[0].kind is not FrameKind.STARTED:
            raise FrameError("the first frame does not say that the command has started")
        self.process_id, self.pid = parse_started(self._first.pop(0))

    async def aclose(self) -> None:
        """Leave it; the process goes on. Idempotent."""
        await self._batches.aclose()
        self._command.close()

    async def output(self) -> AsyncGenerator[Gap | Output | CommandEnd, None]:
        """What it prints, as it comes: what has come together is one piece. The last is how the command ended.

        Raises `AgentUnreachable` if the guest is lost.
        """
        with _hostile():
            for piece in self._pieces(self._first):
                yield piece
            async for batch in self._batches:
                for piece in self._pieces(batch):
                    yield piece
        raise AgentUnreachable("the guest did not say how the command ended")

    def _pieces(self, frames: list[Frame]) -> Iterator[Gap | Output | CommandEnd]:
        data = bytearray()
        for frame in frames:
            if data and (frame.kind is not FrameKind.STDOUT or frame.offset != self._position):
                yield Output(bytes(data))
                data.clear()
            match frame.kind:
                case FrameKind.STDOUT:
                    if frame.offset != self._position:
                        yield Gap(frame.offset)
                    self._position = frame.offset + len(frame.payload)
                    data += frame.payload
                case FrameKind.EXIT:
                    yield CommandEnd.of(frame.json())
                case FrameKind.IDLE:
                    yield Output(b"")
                case FrameKind.STARTED | FrameKind.STDERR | FrameKind.ERROR:
                    raise FrameError(f"a {frame.kind.name} frame in the output of a terminal")
        if data:
            yield Output(bytes(data))

    async def resize(self, size: PtySize) -> None:
        """Set the window's size. Of a command that has ended: nothing."""
        await self._resumed()
        with contextlib.suppress(NoSuchProcess):
            await processes.resize(self._engine, self._ref, self.process_id, size)

    async def signal(self, number: int) -> None:
        """Send a signal to the group in its foreground. To a command that has ended: nothing."""
        await self._resumed()
        with contextlib.suppress(NoSuchProcess):
            await processes.send_signal(self._engine, self._ref, self.process_id, number)

    async def write(self, data: bytes) -> None:
        """Type ``data``. Raises `StdinClosed`, `NoSuchProcess` if nobody reads it any more."""
        await self._resumed()
        await processes.write_stdin(self._engine, self._ref, self.process_id, data, close=False)

    async def _resumed(self) -> None:
        """Wait while the VM is paused: its terminals wait with it."""
        while stall.is_paused(self._engine, self._command.vm_id):
            await asyncio.sleep(_PAUSED_S)

    async def kill(self) -> None:
        """Kill the process, for whom nobody would know its id."""
        with contextlib.suppress(NoSuchProcess):
            await processes.kill_process(self._engine, self._ref, self.process_id)


async def start_terminal(engine: Engine, ref: str, request: ExecRequest) -> Terminal:
    """Start a command of the background in a new terminal. Raises as `squib.core.guestio.exec.start_exec`."""
    return await _begun(Terminal(engine, ref, await exec.start_exec(engine, ref, request), position=0))


async def attach_terminal(engine: Engine, ref: str, process_id: str, *, offset: int, size: PtySize | None) -> Terminal:
    """Read along from ``offset`` on, in a window of ``size``. Raises `NoTerminal` if the process has none, and as
    `squib.core.guestio.processes.attach`.
    """
    info = await processes.get_process(engine, ref, process_id)
    if info.pty is None:
        raise NoTerminal(f"process {process_id} has no terminal", hint="its output is at …/processes/{id}/output")
    command = await processes.attach(engine, ref, process_id, stdout=offset)
    terminal = await _begun(Terminal(engine, ref, command, position=None))
    if size:
        try:
            await terminal.resize(size)
        except BaseException:
            await terminal.aclose()
            raise
    return terminal


async def _begun(terminal: Terminal) -> Terminal:
    try:
        with _hostile():
            await terminal.begin()
    except BaseException:
        await terminal.aclose()
        raise
    return terminal


class Keyboard:
    """Input on its way to a terminal, in order, in requests of their own (others may type too): what comes while one
    is under way goes with the next. Holds at most `_MAX_WAITING_BYTES` and one piece.
    """

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._waiting = bytearray()
        self._changed = asyncio.Condition()
        self._ended = False
        self._refused = False

    async def type(self, data: bytes) -> None:
        """Take ``data``, as soon as there is room. If the command reads no more: nothing."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._waiting) < _MAX_WAITING_BYTES or self._refused)
            if not self._refused:
                self._waiting += data
                self._changed.notify_all()

    async def end(self) -> None:
        """Nothing more will come: `run` returns when it has written the rest."""
        async with self._changed:
            self._ended = True
            self._changed.notify_all()

    async def run(self) -> None:
        """Write what is typed until the `end`. What the command does not read any more is dropped."""
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._waiting or self._ended)
                data = bytes(self._waiting)
                self._waiting.clear()
                self._changed.notify_all()
            if not data:
                return
            try:
                await self._terminal.write(data)
            except (StdinClosed, NoSuchProcess):
                await self._refuse()

    async def _refuse(self) -> None:
        async with self._changed:
            self._refused = True
            self._waiting.clear()
            self._changed.notify_all()


async def _decode(chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[list[Frame], None]:
    decoder = FrameDecoder()
    async with contextlib.aclosing(chunks):
        async for chunk in chunks:
            if frames := list(decoder.feed(chunk)):
                yield frames


@contextlib.contextmanager
def _hostile() -> Iterator[None]:
    try:
        yield
    except FrameError as error:
        raise AgentUnreachable(f"the guest sent what is no output of a command: {error}") from None
