"""Start commands in a VM and stream their output.

`AsyncVM.run` and the command line use this module.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress

from pydantic import ValidationError

from squib.errors import AgentProtocolError, InvalidArgument, NoSuchProcess, SquibError, StdinClosed
from squib.models import ExecRequest, PtySize
from squib.models.base import check_name
from squib.protocol.errors import from_wire
from squib.protocol.frames import Frame, FrameDecoder, FrameError, FrameKind
from squib.sdk.client import EngineClient
from squib.sdk.config import check_ref, describe
from squib.sdk.result import CommandEnd

_PIECE_BYTES = 1 << 18


class Command:
    """A running command.

    Read `output` to the end; `end` then holds the exit status.
    """

    def __init__(self, engine: EngineClient, path: str, frames: AsyncIterator[Frame]) -> None:
        self._engine = engine
        self._path = path
        self._frames = frames
        self._end: CommandEnd | None = None

    @property
    def end(self) -> CommandEnd:
        """The exit status.

        Raises `AgentProtocolError` if the output ended without one.
        """
        if self._end is None:
            raise AgentProtocolError("the output ended before the command exited")
        return self._end

    async def output(self) -> AsyncIterator[Frame]:
        """Yield the ``STDOUT`` and ``STDERR`` frames.

        Raises `AgentUnreachable` if the VM stops responding.
        """
        async for frame in self._frames:  # reads the whole response, so that the connection can be reused
            match frame.kind:
                case FrameKind.STDOUT | FrameKind.STDERR:
                    yield frame
                case FrameKind.EXIT:
                    self._end = CommandEnd.of(frame.json())
                case FrameKind.ERROR:
                    raise from_wire(frame.json())

    async def feed(self, data: bytes | AsyncIterable[bytes]) -> None:
        """Write all of the standard input and close it.

        It is not an error if the command stops reading.
        """
        pieces = pieces_of(data) if isinstance(data, bytes) else data
        with suppress(StdinClosed, NoSuchProcess):
            async with self._engine.stream("POST", f"{self._path}/stdin?close=true", aiter(pieces)) as response:
                await response.aread()

    async def signal(self, number: int) -> None:
        """Send a signal to the process group.

        If the command has exited, do nothing.
        """
        with suppress(NoSuchProcess):
            await self._engine.request("POST", f"{self._path}/signal", {"signal": number})


def exec_request(
    cmd: str | Sequence[str],
    *,
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    user: str | None = None,
    sudo: bool = False,
    stdin: bool = False,
    pty: bool | PtySize = False,
    restore_signal: int | None = None,
) -> ExecRequest:
    """Build an `ExecRequest`; parameters as in `AsyncVM.spawn`.

    Raises `InvalidArgument`.
    """
    values: dict[str, object] = {"shell": cmd} if isinstance(cmd, str) else {"argv": list(cmd)}
    values |= {"env": dict(env or {}), "cwd": cwd, "user": user, "timeout_s": timeout, "sudo": sudo, "stdin": stdin}
    values |= {"pty": PtySize() if pty is True else pty or None, "restore_signal": restore_signal}
    try:
        return ExecRequest.model_validate(values)
    except ValidationError as error:
        raise InvalidArgument(describe(error)) from None


@asynccontextmanager
async def start_command(
    engine: EngineClient, ref: str, request: ExecRequest, *, stdin: bytes | AsyncIterable[bytes] | None = None
) -> AsyncIterator[Command]:
    """Start a command in the VM ``ref`` and write ``stdin`` to it.

    If the block ends before the command exits, the command is killed.

    Raises an `ExecError` if the command cannot start, `WrongState`, `NotFound`, and `AgentUnreachable`.
    """
    request = request.model_copy(update={"stdin": stdin is not None})
    with frame_errors():
        async with _exec(engine, ref, request) as (process_id, frames):
            command = Command(engine, process_path(ref, process_id), frames)
            if stdin is None:
                yield command
                return
            feeder = asyncio.create_task(command.feed(stdin), name=f"stdin of {process_id}")
            try:
                with _interrupted_by(feeder):
                    yield command
            finally:
                feeder.cancel()
                await asyncio.wait([feeder])


async def start_background(engine: EngineClient, ref: str, request: ExecRequest) -> str:
    """Start a background command in a VM and return its id, such as ``p3``.

    The command is not attached: its output is buffered. If the call is cancelled, the command is killed, because the
    caller does not have its id.

    Raises the errors of `start_command`.
    """
    starting = asyncio.create_task(_start_background(engine, ref, request), name=f"start in {ref}")
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        with suppress(SquibError):
            await engine.request("DELETE", process_path(ref, await starting))
        raise


async def _start_background(engine: EngineClient, ref: str, request: ExecRequest) -> str:
    with frame_errors():
        async with _exec(engine, ref, request.model_copy(update={"background": True})) as (process_id, _):
            pass
    return process_id


@asynccontextmanager
async def _exec(
    engine: EngineClient, ref: str, request: ExecRequest
) -> AsyncIterator[tuple[str, AsyncIterator[Frame]]]:
    """Start a command; yield its id and the frames after ``STARTED``.

    Raises `FrameError`, and the errors of `start_command`.
    """
    body = json.dumps(request.model_dump(exclude_defaults=True)).encode("ascii")
    async with engine.stream("POST", f"/vms/{check_ref(ref)}/exec", body) as response:
        frames = decode(response.aiter_raw())
        started = await anext(frames, None)
        if started and started.kind is FrameKind.ERROR:
            raise from_wire(started.json())
        if started is None or started.kind is not FrameKind.STARTED:
            raise FrameError("the first frame is not a STARTED frame")
        yield _process_id(started), frames


def _process_id(started: Frame) -> str:
    try:
        return check_name(str(started.json().get("id", "")))
    except ValueError as error:
        raise FrameError(f"invalid process id: {error}") from None


def process_path(ref: str, process_id: str) -> str:
    """Return the API path of a process. Raises `InvalidArgument`."""
    return f"/vms/{check_ref(ref)}/processes/{check_ref(process_id)}"


@contextmanager
def frame_errors() -> Iterator[None]:
    """Convert a `FrameError` to an `AgentProtocolError`."""
    try:
        yield
    except FrameError as error:
        raise AgentProtocolError(f"invalid command output from the guest: {error}") from error


async def decode(chunks: AsyncIterator[bytes]) -> AsyncIterator[Frame]:
    """Decode a response into frames.

    Raises `squib.protocol.frames.FrameError`.
    """
    decoder = FrameDecoder()
    async for chunk in chunks:
        for frame in decoder.feed(chunk):
            yield frame


async def pieces_of(data: bytes) -> AsyncIterator[bytes]:
    """Split ``data`` into chunks for a streamed request body."""
    for start in range(0, len(data), _PIECE_BYTES):
        yield data[start : start + _PIECE_BYTES]


@contextmanager
def _interrupted_by(helper: asyncio.Task[None]) -> Iterator[None]:
    """Cancel the block if ``helper`` fails, and raise the error of ``helper``.

    Otherwise a command whose input is interrupted would wait for more input forever.
    """
    task = asyncio.current_task()
    assert task is not None
    cancelling = task.cancelling()
    failed = False

    def on_done(done: asyncio.Task[None]) -> None:
        nonlocal failed
        if not done.cancelled() and done.exception():
            failed = True
            task.cancel()

    helper.add_done_callback(on_done)
    try:
        yield
    except asyncio.CancelledError:
        if failed and task.uncancel() <= cancelling:
            helper.result()
        raise
    finally:
        helper.remove_done_callback(on_done)
