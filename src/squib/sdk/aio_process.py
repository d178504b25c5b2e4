"""The asyncio class for background commands.

`squib.Process` is the synchronous version.
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
    AgentProtocolError,
    AgentUnreachable,
    EngineUnavailable,
    NoSuchProcess,
    NotFound,
    SquibError,
    StdinClosed,
    WrongState,
)
from squib.models import ExecRequest, ProcessInfo
from squib.protocol.errors import from_wire
from squib.protocol.frames import CommandEnd, Frame, FrameKind
from squib.sdk.client import EngineClient
from squib.sdk.command import decode, frame_errors, pieces_of, process_path, start_background
from squib.sdk.config import check_ref
from squib.sdk.responses import read_list, read_value
from squib.undo import to_its_end

_REATTACH_PAUSES_S = (0.0, 0.1, 0.5, 1.0)
"""Delays before each attempt to reattach to a lost local engine. Received output resets the count."""


@dataclass(frozen=True)
class OutputChunk:
    """A chunk of a command's output.

    ``offset`` is the position of the chunk's first byte in its stream. If it is past the end of the previous chunk,
    the output in between was dropped. A terminal's output is all ``stdout``.
    """

    stream: Literal["stdout", "stderr"]
    data: bytes
    offset: int


class AsyncStdin:
    """The standard input of a command spawned with ``stdin`` or ``pty``."""

    def __init__(self, engine: EngineClient, path: str) -> None:
        self._engine = engine
        self._path = f"{path}/stdin"

    async def write(self, data: bytes | str) -> None:
        """Write all of ``data``; text is encoded as UTF-8.

        Blocks until the command reads. Concurrent calls run one after another.

        Raises `StdinClosed` if the command closed its standard input or has none, and `NoSuchProcess`.
        """
        pieces = pieces_of(data.encode() if isinstance(data, str) else data)
        async with self._engine.stream("POST", self._path, pieces) as response:
            await response.aread()

    async def close(self) -> None:
        """Send end-of-file; in a terminal, Ctrl-D. Idempotent."""
        with suppress(StdinClosed, NoSuchProcess):
            await self._engine.request("POST", f"{self._path}?close=true")


class AsyncProcess:
    """A background command. Get one from `AsyncVM.spawn` or `AsyncVM.process`.

        async with await vm.spawn("make -j4") as process:  # kills the command on exit, if it still runs
            async for chunk in process:
                print(chunk.stream, chunk.data)
            print((await process.wait()).exit_code)

    Iterating attaches to the output. It starts at the oldest output that is kept (1 MiB for both streams together) and
    ends when the command exits. While a reader is attached, the command waits for it and no output is lost. Without a
    reader, the command waits at most 10 s when the buffer is full; then the oldest output is dropped.

    `id` is unique in the VM. Any program can use it to find the command.
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
        """The process ID in the VM, such as ``p3``."""
        return self._info.id

    @property
    def pid(self) -> int:
        """The PID of the command's first process, in the guest."""
        return self._info.pid

    @property
    def info(self) -> ProcessInfo:
        """The cached process details; `refresh` updates them."""
        return self._info

    @property
    def stdin(self) -> AsyncStdin:
        """The command's standard input."""
        return self._stdin

    async def refresh(self) -> ProcessInfo:
        """Fetch the current process details.

        Raises `NoSuchProcess` if the process is no longer kept.
        """
        self._info = read_value(ProcessInfo, await self._engine.request("GET", self._path))
        return self._info

    def __aiter__(self) -> AsyncIterator[OutputChunk]:
        return self.output()

    async def output(self, stdout_offset: int = 0, stderr_offset: int = 0) -> AsyncGenerator[OutputChunk, None]:
        """Yield the command's output until it exits.

        The output starts at the two offsets, in bytes, or at the oldest output that is kept. If a local engine exits,
        a new one is started and the output continues without a gap. To detach, close the generator, for example with
        `contextlib.aclosing`; the command keeps running.

        Raises `NoSuchProcess`, `EngineUnavailable`, and `AgentUnreachable` if the VM stops responding.
        """
        offsets = {FrameKind.STDOUT: stdout_offset, FrameKind.STDERR: stderr_offset}
        async with aclosing(self._follow(offsets)) as frames:
            async for frame in frames:
                yield OutputChunk("stdout" if frame.kind is FrameKind.STDOUT else "stderr", frame.payload, frame.offset)

    async def wait(self, timeout: float | None = None) -> CommandEnd:
        """Wait until the command exits, without reading its output.

        ``timeout`` is in seconds; 0 and ``None`` are no limit. After a `TimeoutError` the command keeps running.

        Raises `TimeoutError`, `NoSuchProcess` if another client killed the command, and the errors of `output`.
        """
        try:
            async with asyncio.timeout(timeout or None), aclosing(self._follow(None)) as frames:
                async for _ in frames:
                    pass
        except SquibError:
            raise
        except TimeoutError:
            raise TimeoutError(f"process {self.id} did not exit within {timeout:g} s; it is still running") from None
        assert self._end is not None
        return self._end

    async def signal(self, number: int) -> None:
        """Send a signal to the command's process group.

        In a terminal, send it to the foreground process group. If the command has exited, do nothing.
        """
        with suppress(NoSuchProcess):
            await self._engine.request("POST", f"{self._path}/signal", {"signal": number})

    async def kill(self, signal: int = SIGKILL) -> None:
        """Kill the command and its descendants, and discard its output.

        The command itself may have exited before. Returns when all of them have exited. A ``signal`` other than SIGKILL
        is only sent, as with `signal`. Idempotent.
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
                ended = {name: value for name, value in vars(self._end).items() if name in ProcessInfo.model_fields}
                self._info = info.model_copy(update={"running": False} | ended)
            else:
                self._end = self._end or _end_of(info)

    async def resize(self, rows: int, cols: int) -> None:
        """Resize the command's terminal, in characters.

        Raises `NoTerminal` if the command has no terminal, and `NoSuchProcess`.
        """
        await self._engine.request("POST", f"{self._path}/resize", {"rows": rows, "cols": cols})

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The kill must complete even if this task is cancelled.
        await to_its_end(asyncio.create_task(self._kill_if_exists(), name=f"kill {self.id}"))

    async def _kill_if_exists(self) -> None:
        with suppress(NotFound, WrongState, AgentUnreachable):  # the VM is down, and the command with it
            await self.kill()

    async def _follow(self, offsets: dict[FrameKind, int] | None) -> AsyncGenerator[Frame, None]:
        """Yield output frames from ``offsets`` on, and advance ``offsets``.

        With ``None``, yield nothing and wait for the exit.
        """
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
        with frame_errors():
            async with self._engine.stream("GET", f"{self._path}/output?{query}") as response:
                async for frame in decode(response.aiter_raw()):
                    match frame.kind:
                        case FrameKind.STDOUT | FrameKind.STDERR:
                            yield frame
                        case FrameKind.EXIT:
                            self._end, ended = CommandEnd.of(frame.json()), True
                        case FrameKind.ERROR:
                            raise from_wire(frame.json())
        if not ended:
            raise AgentProtocolError("the output ended before the command exited")


def _end_of(info: ProcessInfo) -> CommandEnd:
    return CommandEnd(info.exit_code or 0, info.signal, info.timed_out, info.duration_s or 0.0)


async def spawn(engine: EngineClient, vm_id: str, request: ExecRequest) -> AsyncProcess:
    """Start a background command.

    Raises the errors of `squib.sdk.command.start_command`.
    """
    process_id = await start_background(engine, vm_id, request)
    try:
        return await find_process(engine, vm_id, process_id)
    except asyncio.CancelledError:
        with suppress(SquibError):
            await engine.request("DELETE", process_path(vm_id, process_id))
        raise


async def find_process(engine: EngineClient, vm_id: str, process_id: str) -> AsyncProcess:
    """Look up a process by its id.

    Raises `NoSuchProcess`, `InvalidArgument`.
    """
    info = read_value(ProcessInfo, await engine.request("GET", process_path(vm_id, process_id)))
    return AsyncProcess(engine, vm_id, info)


async def list_processes(engine: EngineClient, vm_id: str) -> list[ProcessInfo]:
    """List running commands and ended background commands, oldest first."""
    return read_list(ProcessInfo, await engine.request("GET", f"/vms/{check_ref(vm_id)}/processes"), "processes")
