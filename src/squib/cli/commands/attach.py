"""``squib attach``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from squib.cli import options
from squib.cli.app import command
from squib.cli.keys import DEFAULT_DETACH_KEYS
from squib.cli.render import Output


@command("attach", examples=["squib attach web", "squib attach web p3"])
async def attach(
    output: Output,
    vm: options.Ref,
    process_id: Annotated[
        str | None,
        typer.Argument(metavar="[ID]", help="ID that squib ps shows. Default: the newest that is detached."),
    ] = None,
    detach_keys: options.DetachKeysFlag = DEFAULT_DETACH_KEYS,
) -> int:
    """Join a terminal of a VM again: a shell of squib connect, a program of squib exec -t.

    What it printed before is shown first, as much as is kept (1 MiB). The status is that of the program. Several may be
    attached at once.
    """
    from squib.cli.keys import parse_keys
    from squib.cli.processes import find_process, list_processes, newest_detached
    from squib.cli.rawmode import terminal_size
    from squib.cli.terminal import Joining, check_terminal, run_terminal
    from squib.errors import NoTerminal
    from squib.sdk.config import check_ref
    from squib.sdk.terminal import Attach

    for ref in (vm, process_id or vm):
        check_ref(ref)
    keys = parse_keys(detach_keys, flag="--detach-keys")
    check_terminal(output, hint=f"squib ps {vm} shows what runs")
    async with options.connect() as engine:
        if process_id is None:
            process = newest_detached(vm, await list_processes(engine, vm))
        else:
            process = await find_process(engine, vm, process_id)
        if process.pty is None:
            raise NoTerminal(f"{process.id} of VM {vm} has no terminal", hint=f"squib ps {vm} shows which have one")
        joining = Joining(keys, past_until=process.stdout.end, announce=True)
        return await run_terminal(
            output, engine, vm, Attach(process.id, size=terminal_size(sys.stdin.fileno())), joining
        )
