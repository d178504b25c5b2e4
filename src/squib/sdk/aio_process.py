"""`AsyncProcess`: a command of the background in a VM, for asyncio programs. `squib.Process` is its synchronous
face.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from signal import SIGKILL
from types import TracebackType
from typing import Literal, Self

from squib.errors import (
    AgentUnreachable,
    EngineUnavailable,
    NoSuchProcess,
    NotFound,
    SquibError,
    StdinClosed,
    WrongState,
    from_wire,
)
from squib.models import ExecRequest, ProcessInfo
from squib.protocol.frames import CommandEnd, Frame, FrameError, FrameKind
from squib.sdk.client import EngineClient, read_list, read_value
from squib.sdk.command import decode, pieces_of, process_path, start_background
from squib.sdk.config import check_ref
from squib.sdk.transfer.chunks import to_its_end

_REATTACH_PAUSES_S = (0.0, 0.1, 0.5, 1.0)
"""Before each attempt to go on reading when the local engine was lost; the count starts again with what is read."""


@dataclass(frozen=True)
class OutputChunk:
    """A piece of a command's output. ``offset`` is that of its first byte in its stream: where that is past the end of
    the piece before, output in between was dropped. With a terminal, all is ``stdout``.
    """

    stream: Literal["stdout", "stderr"]
    data: bytes
    offset: int


class AsyncStdin:
    """The standard input of a command that was spawned with ``stdin=True`` or a terminal."""

    def __init__(self, engine: EngineClient, path: str) -> None:
        self._engine = engine
        self._path = f"{path}/stdin"

    async def write(self, data: bytes | str) -> None:
        """Write all of ``data`` (text as UTF-8); waits while the command does not read. Calls take turns.

        Raises `StdinClosed` if the command reads no more, or never did; `NoSuchProcess`.
        """
        pieces = pieces_of(data.encode() if isinstance(data, str) else data)
        async with self._engine.stream("POST", self._path, pieces) as response:
            await response.aread()

    async def close(self) -> None:
        """Close it: the command reads the end of the file (in a terminal: Ctrl-D). Closed already: nothing."""
        with suppress(StdinClosed, NoSuchProcess):
            await self._engine.request("POST", f"{self._path}?close=true")


class AsyncProcess:
    """A command in a VM that goes on whether anybody looks at it or not. Made by `AsyncVM.spawn` and `AsyncVM.process`.

        async with await vm.spawn("make -j4") as process:     # killed at the end of the block, if it still runs
            async for chunk in process:
                print(chunk.stream, chunk.data)
            print((await process.wait()).exit_code)

    Iterating attaches to its output, from the oldest that is kept (1 MiB of both streams) to its end; a reader that is
    there holds the command up rather than lose output. Without one the command goes on after 10 s, and its oldest
    output is dropped. `id` names it in this VM, for this program and all others (`AsyncVM.processes`).
    """

    def __init__(self, engine: EngineClient, vm_id: str, info: ProcessInfo) -> None:
        self._engine = engine
        self._path = process_path(vm_id, info.id)
        self._info = info
        self._end: CommandEnd | None = None
        self._stdin = AsyncStdin(engine, self._path)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {'running' if self._info.running else 'ended'}>"

    @property
    def id(self) -> str:
        """Its name in the VM, such as ``p3``."""
        return self._info.id

    @property
    def pid(self) -> int:
        """That of its first process, in the guest."""
        return self._info.pid

    @property
    def info(self) -> ProcessInfo:
        """The process as last seen; `refresh` looks again."""
        return self._info

    @property
    def stdin(self) -> AsyncStdin:
        """Its standard input."""
        return self._stdin

    async def refresh(self) -> ProcessInfo:
        """Ask for the process as it is now. Raises `NoSuchProcess` if it is not kept any more."""
        self._info = read_value(ProcessInfo, await self._engine.request("GET", self._path))
        return self._info

    def __aiter__(self) -> AsyncIterator[OutputChunk]:
        return self.output()

    async def output(self, stdout_offset: int = 0, stderr_offset: int = 0) -> AsyncGenerator[OutputChunk, None]:
        """Its output as it comes, to its end: from these offsets on, or from the oldest that is kept.

        If a local engine ends meanwhile, another one is started and the output goes on where it was. Leaving (close the
        generator, as `contextlib.aclosing` does) detaches; the command goes on.

        Raises `NoSuchProcess`, `AgentUnreachable` if the VM is lost, `EngineUnavailable`.
        """
        offsets = {FrameKind.STDOUT: stdout_offset, FrameKind.STDERR: stderr_offset}
        async with aclosing(self._follow(offsets)) as frames:
            async for frame in frames:
                yield OutputChunk("stdout" if frame.kind is FrameKind.STDOUT else "stderr", frame.payload, frame.offset)

    async def wait(self, timeout: float | None = None) -> CommandEnd:
        """Wait until it ends, at most ``timeout`` seconds. Does not read its output, nor hold it up.

        Raises `TimeoutError` (the command goes on), `NoSuchProcess` if somebody else has killed it before, and as
        `output`.
        """
        try:
            async with asyncio.timeout(timeout), aclosing(self._follow(None)) as frames:
                async for _ in frames:
                    pass
        except TimeoutError:
            raise TimeoutError(f"process {self.id} has not ended within {timeout:g} s; it goes on") from None
        assert self._end is not None
        return self._end

    async def signal(self, number: int) -> None:
        """Send a signal to its process group; in a terminal, to the group in the foreground. Has it ended: nothing."""
        with suppress(NoSuchProcess):
            await self._engine.request("POST", f"{self._path}/signal", {"signal": number})

    async def kill(self, signal: int = SIGKILL) -> None:
        """Kill it with all its descendants, and forget its output; returns when they are gone. Another ``signal`` than
        SIGKILL is only sent, as by `signal`. Has it been forgotten: nothing.
        """
        if signal != SIGKILL:
            await self.signal(signal)
            return
        with suppress(NoSuchProcess):
            info = await self.refresh()
            await self._engine.request("DELETE", self._path)
            if info.running:
                duration_s = max(0.0, (datetime.now(UTC) - info.started_at).total_seconds())
                self._end = self._end or CommandEnd(128 + SIGKILL, int(SIGKILL), False, duration_s)
                self._info = info.model_copy(update={"running": False} | vars(self._end))
            else:
                self._end = self._end or _end_of(info)

    async def resize(self, rows: int, cols: int) -> None:
        """Set the size of its terminal. Raises `NoTerminal` if it has none, `NoSuchProcess`."""
        await self._engine.request("POST", f"{self._path}/resize", {"rows": rows, "cols": cols})

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Who is cancelled here leaves no process either.
        await to_its_end(asyncio.create_task(self._kill_if_there(), name=f"kill {self.id}"))

    async def _kill_if_there(self) -> None:
        with suppress(NotFound, WrongState, AgentUnreachable):  # with its VM it is gone too
            await self.kill()

    async def _follow(self, offsets: dict[FrameKind, int] | None) -> AsyncGenerator[Frame, None]:
        """Its output from ``offsets`` on, which are moved on, or only its end."""
        failures = 0
        while self._end is None or offsets is not None:
            try:
                async with aclosing(self._attach(offsets)) as frames:
                    async for frame in frames:
                        failures = 0
                        if offsets is not None:
                            offsets[frame.kind] = frame.offset + len(frame.payload)
                        yield frame
                return
            except EngineUnavailable:
                if self._engine.home is None or failures == len(_REATTACH_PAUSES_S):
                    raise
                await asyncio.sleep(_REATTACH_PAUSES_S[failures])
                failures += 1

    async def _attach(self, offsets: dict[FrameKind, int] | None) -> AsyncGenerator[Frame, None]:
        if offsets is None:
            query = "none=true"
        else:
            query = f"stdout={offsets[FrameKind.STDOUT]}&stderr={offsets[FrameKind.STDERR]}"
        ended = False
        try:
            async with self._engine.stream("GET", f"{self._path}/output?{query}") as response:
                async for frame in decode(response.aiter_raw()):
                    match frame.kind:
                        case FrameKind.STDOUT | FrameKind.STDERR:
                            yield frame
                        case FrameKind.EXIT:
                            self._end, ended = CommandEnd.of(frame.json()), True
                        case FrameKind.ERROR:
                            raise from_wire(frame.json())
        except FrameError as error:
            raise AgentUnreachable(f"the guest sent what is no output of a command: {error}") from error
        if not ended:
            raise AgentUnreachable("the output ended before the command did")


def _end_of(info: ProcessInfo) -> CommandEnd:
    return CommandEnd(info.exit_code or 0, info.signal, info.timed_out, info.duration_s or 0.0)


async def spawn(engine: EngineClient, vm_id: str, request: ExecRequest) -> AsyncProcess:
    """Start a command of the background. Raises as `squib.sdk.command.start_command`."""
    process_id = await start_background(engine, vm_id, request)
    try:
        return await find_process(engine, vm_id, process_id)
    except asyncio.CancelledError:
        with suppress(SquibError):
            await engine.request("DELETE", process_path(vm_id, process_id))
        raise


async def find_process(engine: EngineClient, vm_id: str, process_id: str) -> AsyncProcess:
    """The process with this id. Raises `NoSuchProcess`, `InvalidArgument`."""
    info = read_value(ProcessInfo, await engine.request("GET", process_path(vm_id, process_id)))
    return AsyncProcess(engine, vm_id, info)


async def list_processes(engine: EngineClient, vm_id: str) -> list[ProcessInfo]:
    """The processes of a VM that run, and those of the background that have ended and are kept; oldest first."""
    return read_list(ProcessInfo, await engine.request("GET", f"/vms/{check_ref(vm_id)}/processes"), "processes")
