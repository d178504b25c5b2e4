"""Move snapshots between machines: ``snapshot export`` and ``snapshot import``."""

from __future__ import annotations

import sys
from contextlib import aclosing

from squib.cli.args.units import show_bytes
from squib.cli.progress import late_steps
from squib.cli.render import Output
from squib.cli.terminal.streams import ended_by_broken_pipe, read_chunks, write_all
from squib.errors import InvalidArgument
from squib.sdk.client import EngineClient
from squib.sdk.snapshots import AsyncSnapshots

_STREAM = "-"


async def export_snapshot(output: Output, engine: EngineClient, ref: str, file: str, *, replace: bool) -> None:
    """Write a snapshot to a local file or to standard output."""
    snapshots = AsyncSnapshots(engine=engine)
    if file == _STREAM:
        await _to_stdout(output, snapshots, ref)
        return
    async with late_steps(output, f"exporting {ref}") as report:
        size = await snapshots.export_file(ref, file, replace=replace, on_progress=report)
    if output.json:
        output.data({"snapshot": ref, "file": file, "size_bytes": size})
    output.detail(f"{file}: {show_bytes(size)}")


async def _to_stdout(output: Output, snapshots: AsyncSnapshots, ref: str) -> None:
    """Write a snapshot to standard output, without progress: the reader may show its own.

    Raises `BrokenPipeError` as soon as the reader is gone.
    """
    if output.json:
        raise InvalidArgument("--json and '-' cannot be used together: both write to standard output")
    if sys.stdout.isatty():
        raise InvalidArgument("a snapshot is not written to a terminal", hint="give a file, or use a pipe")
    fd = sys.stdout.fileno()
    with ended_by_broken_pipe(fd):
        async with aclosing(snapshots.export_stream(ref)) as chunks:
            async for chunk in chunks:
                await write_all(fd, chunk)


async def import_snapshot(output: Output, engine: EngineClient, file: str, *, name: str | None) -> None:
    """Import a snapshot from a local file or from standard input, and print its ID."""
    snapshots = AsyncSnapshots(engine=engine)
    async with late_steps(output, f"importing {'standard input' if file == _STREAM else file}") as report:
        if file == _STREAM:
            made = await snapshots.import_stream(read_chunks(sys.stdin.fileno()), name=name, on_progress=report)
        else:
            made = await snapshots.import_file(file, name=name, on_progress=report)
    if output.json:
        output.data(made)
    else:
        output.line(made.snapshot_id)
