"""Terminals: background processes with a pty, their readers and input."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass

from squib.core.engine import Engine
from squib.core.guestio import exec, processes, stall
from squib.errors import AgentLost, AgentProtocolError, NoSuchProcess, NoTerminal, StdinClosed
from squib.guest.processes import parse_started
from squib.models import ExecRequest, PtySize
from squib.protocol.frames import CommandEnd, Frame, FrameDecoder, FrameError, FrameKind
from squib.undo import AsyncUndo

_MAX_WAITING_BYTES = 1 << 16
_PAUSED_S = 0.25


@dataclass(frozen=True)
class Gap:
    """Output was skipped: the next output begins at ``offset``."""

    offset: int


@dataclass(frozen=True)
class Output:
    """Output of a terminal; empty if it has printed nothing for a while."""

    data: bytes


class TerminalAttachment:
    """A client's attachment to a terminal: reads output and writes input.

    `start_terminal` and `attach_terminal` return one; `aclose` it.
    """

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
        """Read the process ID. Raises `AgentUnreachable`."""
        self._first = await anext(self._batches, [])
        if not self._first or self._first[0].kind is not FrameKind.STARTED:
            raise FrameError("the first frame is not STARTED")
        self.process_id, self.pid = parse_started(self._first.pop(0))

    async def aclose(self) -> None:
        """Detach; the process continues. Idempotent."""
        await self._batches.aclose()
        self._command.close()

    async def output(self) -> AsyncGenerator[Gap | Output | CommandEnd, None]:
        """Yield output as it arrives, then how the command ended.

        Output that arrives together is one piece.

        Raises `AgentUnreachable` if the guest is lost.
        """
        with _protocol_errors():
            for piece in self._pieces(self._first):
                yield piece
            async for batch in self._batches:
                for piece in self._pieces(batch):
                    yield piece
        raise AgentLost("the output of the terminal ended before its command")

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
        """Set the window's size. Does nothing if the command has ended."""
        await self._wait_until_resumed()
        with contextlib.suppress(NoSuchProcess):
            await processes.resize(self._engine, self._ref, self.process_id, size)

    async def signal(self, number: int) -> None:
        """Send a signal to the foreground process group.

        Does nothing if the command has ended.
        """
        await self._wait_until_resumed()
        with contextlib.suppress(NoSuchProcess):
            await processes.send_signal(self._engine, self._ref, self.process_id, number)

    async def write(self, data: bytes) -> None:
        """Write input.

        Raises `StdinClosed`, `NoSuchProcess` if the command no longer reads it.
        """
        await self._wait_until_resumed()
        await processes.write_stdin(self._engine, self._ref, self.process_id, data, close=False)

    async def _wait_until_resumed(self) -> None:
        """Wait while the VM is paused."""
        while stall.is_paused(self._engine, self._command.vm_id):
            await asyncio.sleep(_PAUSED_S)

    async def kill(self) -> None:
        """Kill the process."""
        with contextlib.suppress(NoSuchProcess):
            await processes.kill_process(self._engine, self._ref, self.process_id)


async def start_terminal(engine: Engine, ref: str, request: ExecRequest) -> TerminalAttachment:
    """Start a background command in a new terminal.

    Raises what `squib.core.guestio.exec.start_exec` raises.
    """
    return await _begun(TerminalAttachment(engine, ref, await exec.start_exec(engine, ref, request), position=0))


async def attach_terminal(
    engine: Engine, ref: str, process_id: str, *, offset: int, size: PtySize | None
) -> TerminalAttachment:
    """Attach to a process's terminal from ``offset``, and set its ``size``.

    If ``size`` is ``None``, the terminal keeps its size.

    Raises `NoTerminal`, and what `squib.core.guestio.processes.attach` raises.
    """
    info = await processes.get_process(engine, ref, process_id)
    if info.pty is None:
        raise NoTerminal(f"process {process_id} has no terminal", hint="its output is at …/processes/{id}/output")
    command = await processes.attach(engine, ref, process_id, stdout=offset)
    terminal = await _begun(TerminalAttachment(engine, ref, command, position=None))
    if size:
        async with AsyncUndo(terminal.aclose):
            await terminal.resize(size)
    return terminal


async def _begun(terminal: TerminalAttachment) -> TerminalAttachment:
    async with AsyncUndo(terminal.aclose):
        with _protocol_errors():
            await terminal.begin()
    return terminal


class InputWriter:
    """A writer of terminal input, in order and one request at a time.

    Other clients may write too. Input that arrives during a request is sent with the next one. Holds at most
    `_MAX_WAITING_BYTES` and one piece.
    """

    def __init__(self, terminal: TerminalAttachment) -> None:
        self._terminal = terminal
        self._waiting = bytearray()
        self._changed = asyncio.Condition()
        self._ended = False
        self._refused = False

    async def put(self, data: bytes) -> None:
        """Queue ``data``, when there is room.

        Drops it if the command no longer reads.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._waiting) < _MAX_WAITING_BYTES or self._refused)
            if not self._refused:
                self._waiting += data
                self._changed.notify_all()

    async def end(self) -> None:
        """End the input: `run` returns when it has written the rest."""
        async with self._changed:
            self._ended = True
            self._changed.notify_all()

    async def run(self) -> None:
        """Write queued input until the `end`.

        Drops it once the command no longer reads.
        """
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
def _protocol_errors() -> Iterator[None]:
    try:
        yield
    except FrameError as error:
        raise AgentProtocolError(f"the guest sent invalid output: {error}") from None
