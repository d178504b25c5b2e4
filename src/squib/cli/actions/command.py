"""Run a command in a VM with this process's input, output and signals."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from base64 import b64encode
from collections.abc import AsyncIterator

from squib.cli import runner
from squib.cli.render import Output
from squib.cli.terminal.streams import ended_by_broken_pipe, read_chunks, write_all
from squib.models import ExecRequest
from squib.protocol.frames import FrameKind
from squib.sdk.aio_process import AsyncProcess
from squib.sdk.client import EngineClient
from squib.sdk.command import Command, start_background, start_command
from squib.sdk.result import Collector, CommandEnd, ExecResult


async def run_command(
    output: Output, engine: EngineClient, ref: str, request: ExecRequest, *, interactive: bool
) -> int:
    """Run a command in the VM ``ref`` and return its status.

    With ``interactive``, it reads this standard input.

    Output is streamed, byte for byte; with ``--json``, it is collected and printed as one object. The first Ctrl-C
    interrupts the command, the second kills it. It is also killed if this process ends or its output is closed.
    """
    stdin = read_chunks(sys.stdin.fileno()) if interactive else None
    async with start_command(engine, ref, request, stdin=stdin) as command:
        end = await (_collect(output, ref, command) if output.json else _stream(command))
    if end.timed_out:
        output.note(f"the command timed out after {request.timeout_s:g} s and was killed")
    note_if_oom_killed(output, end)
    return end.exit_code


def note_if_oom_killed(output: Output, end: CommandEnd) -> None:
    """Print the reason if the guest's kernel killed the command for lack of memory."""
    if end.oom_killed:
        output.note("out of memory: the guest's kernel killed a process of the command")


async def start_in_background(output: Output, engine: EngineClient, ref: str, request: ExecRequest) -> int:
    """Start a background command and print its ID."""
    process_id = await start_background(engine, ref, request)
    if output.json:
        output.data({"vm": ref, "id": process_id})
    else:
        output.line(process_id)
    return 0


async def follow(output: Output, ref: str, process: AsyncProcess) -> int:
    """Print a background command's output until it ends; return its status.

    Output starts with the oldest that is kept. The command keeps running if this process ends.
    """
    descriptors = {"stdout": sys.stdout.fileno(), "stderr": sys.stderr.fileno()}
    try:
        with ended_by_broken_pipe(descriptors["stdout"]):
            async for chunk in process:
                await write_all(descriptors[chunk.stream], chunk.data)
    except asyncio.CancelledError:
        with contextlib.suppress(OSError):
            output.note(f"the command keeps running; reattach with: squib attach {ref} {process.id}")
        raise
    end = await process.wait()
    note_if_oom_killed(output, end)
    return end.exit_code


async def _stream(command: Command) -> CommandEnd:
    descriptors = {FrameKind.STDOUT: sys.stdout.fileno(), FrameKind.STDERR: sys.stderr.fileno()}
    with ended_by_broken_pipe(descriptors[FrameKind.STDOUT]):
        async with _interruptible(command):
            async for frame in command.output():
                await write_all(descriptors[frame.kind], frame.payload)
    return command.end


async def _collect(output: Output, ref: str, command: Command) -> CommandEnd:
    collector = Collector(None, None)
    async with _interruptible(command):
        async for frame in command.output():
            collector.add(frame)
    output.data({"vm": ref} | _as_json(collector.result(command.end)))
    return command.end


@contextlib.asynccontextmanager
async def _interruptible(command: Command) -> AsyncIterator[None]:
    """Send the first Ctrl-C in the block to the command.

    The second ends this process and kills the command.
    """
    sending: list[asyncio.Task[None]] = []

    def interrupt() -> None:
        sending.append(asyncio.create_task(command.signal(signal.SIGINT)))

    try:
        with runner.first_interrupt(interrupt):
            yield
    finally:
        await asyncio.gather(*sending, return_exceptions=True)


def _as_json(result: ExecResult) -> dict[str, object]:
    """Return the result as JSON.

    Output that is not UTF-8 is given a second time, exactly, as base64.
    """
    outputs = {"stdout": result.stdout_bytes, "stderr": result.stderr_bytes}
    exact = {f"{name}_base64": b64encode(data).decode() for name, data in outputs.items() if not _is_utf8(data)}
    return exact | {
        "exit_code": result.exit_code,
        "signal": result.signal,
        "timed_out": result.timed_out,
        "oom_killed": result.oom_killed,
        "duration_s": result.duration_s,
        "stdout": result.stdout,
        "stderr": result.stderr,
        "truncated": result.truncated,
    }


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
