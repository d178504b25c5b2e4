"""``squib logs``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from squib.cli.app import command
from squib.cli.args import options
from squib.cli.render import Output
from squib.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from squib.sdk.client import EngineClient


@command("logs", examples=["squib logs web", "squib logs -n 20 -f web", "squib logs --engine"])
async def logs(
    output: Output,
    vm: Annotated[str | None, typer.Argument(metavar="[VM]", help="ID or name of a VM.", show_default=False)] = None,
    lines: options.Lines = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Keep printing new output until the VM stops.")
    ] = False,
    engine: Annotated[bool, typer.Option("--engine", help="Show the engine's log instead.")] = False,
) -> None:
    """Show a VM's console, or the engine's log.

    The console is what the guest's kernel and init have printed since the VM was last started; at least 1 MiB is kept.
    On a terminal, control characters are made visible. In a pipe or a file, the output is exactly what the guest wrote.
    """
    from squib.cli.terminal.streams import ended_by_broken_pipe, write_all
    from squib.sdk.config import check_ref

    if (vm is None) != engine:
        raise InvalidArgument("either a VM or --engine is required", hint="squib logs VM, or squib logs --engine")
    if follow and output.json:
        raise InvalidArgument("--follow and --json cannot be used together", hint="use one of them")
    if vm is not None:
        check_ref(vm)
    async with options.connect() as client:
        chunks = _chunks(client, vm, lines=lines, follow=follow)
        if output.json:
            text = b"".join([chunk async for chunk in chunks]).decode(errors="replace")
            output.data({"vm": vm, "log": text})
            return
        fd = sys.stdout.fileno()
        shown = _made_printable(chunks) if sys.stdout.isatty() else chunks
        with ended_by_broken_pipe(fd):
            async for chunk in shown:
                await write_all(fd, chunk)


async def _chunks(client: EngineClient, vm: str | None, *, lines: int | None, follow: bool) -> AsyncIterator[bytes]:
    from squib.host import logs
    from squib.sdk.local import engine_answers

    if vm is not None:
        source = client.vm_logs(vm, lines=lines, follow=follow)
    elif client.home and not engine_answers(client.home):
        yield logs.tail(client.home.engine_log, lines=lines)  # it may explain why the engine does not start
        return
    else:
        source = client.engine_logs(lines=lines, follow=follow)
    async for chunk in source:
        yield chunk


async def _made_printable(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    import codecs

    from squib.cli.render import printable

    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    held = ""
    async for chunk in chunks:
        text = held + decoder.decode(chunk)
        body = text.rstrip("\r")  # whether a newline follows decides how they are shown
        held = text[len(body) :]
        yield printable(body).encode()
    yield printable(held + decoder.decode(b"", final=True)).encode()
