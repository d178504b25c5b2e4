"""``squib attach``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from squib.cli.app import command
from squib.cli.args import options
from squib.cli.render import Output
from squib.cli.terminal.keys import DEFAULT_DETACH_KEYS
from squib.errors import InvalidArgument, NoTerminal

if TYPE_CHECKING:
    from squib.models import ProcessInfo


@command("attach", examples=["squib attach web", "squib attach web p3"])
async def attach(
    output: Output,
    vm: options.Ref,
    process_id: Annotated[
        str | None,
        typer.Argument(metavar="[ID]", help="ID that squib ps shows. Default: the newest terminal that is detached."),
    ] = None,
    detach_keys: options.DetachKeysFlag = DEFAULT_DETACH_KEYS,
) -> int:
    """Join a terminal of a VM again, or follow the output of a command of the background.

    What it printed before is shown first, as much as is kept (1 MiB); the status is that of the command. A terminal is
    left by its detach keys, the output of a command by Ctrl-C: both go on. Several may be attached at once.
    """
    from squib.cli.actions.command import follow
    from squib.cli.terminal.attach import Joining, check_terminal, run_terminal
    from squib.cli.terminal.keys import parse_keys
    from squib.cli.terminal.rawmode import terminal_size
    from squib.sdk.aio_process import find_process, list_processes
    from squib.sdk.config import check_ref
    from squib.sdk.terminal import Attach

    check_ref(vm)
    keys = parse_keys(detach_keys, flag="--detach-keys")
    if output.json:
        raise InvalidArgument("attach has no --json", hint=f"squib ps {vm} --json")
    async with options.connect() as engine:
        found = process_id or _newest_detached(vm, await list_processes(engine, vm)).id
        process = await find_process(engine, vm, found)
        if process.info.pty is None:
            return await follow(output, vm, process)
        check_terminal(output, hint=f"squib ps {vm} shows what runs")
        joining = Joining(keys, past_until=process.info.stdout.end, announce=True)
        size = terminal_size(sys.stdin.fileno())
        return await run_terminal(output, engine, vm, Attach(process.id, size=size), joining)


def _newest_detached(ref: str, processes: Sequence[ProcessInfo]) -> ProcessInfo:
    """Of the terminals that run, the newest that nobody looks at. Raises `NoTerminal`, which says which there are."""
    terminals = [process for process in processes if process.pty and process.running]
    detached = [process for process in terminals if not process.readers]
    if detached:
        return detached[-1]
    if not terminals:
        raise NoTerminal(
            f"VM {ref} has no terminal", hint=f"squib connect {ref} opens one; squib ps {ref} shows all commands"
        )
    names = ", ".join(f"{process.id} ({' '.join(process.argv)})" for process in terminals)
    raise NoTerminal(
        f"no terminal of VM {ref} is detached; in use: {names}",
        hint=f"squib attach {ref} {terminals[-1].id} joins one all the same",
    )
