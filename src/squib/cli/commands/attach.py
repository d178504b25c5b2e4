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
        typer.Argument(metavar="[ID]", help="ID of the command, from squib ps. Default: the newest detached terminal."),
    ] = None,
    detach_keys: options.DetachKeysFlag = DEFAULT_DETACH_KEYS,
) -> int:
    """Reattach to a terminal, or follow a background command's output.

    Earlier output is shown first, up to 1 MiB. The exit status is the command's. Detach from a terminal with its detach
    keys, and from a background command with Ctrl-C: the command keeps running. Several clients can attach at once.
    """
    from squib.cli.actions.command import follow
    from squib.cli.terminal.attach import AttachOptions, check_terminal, run_terminal
    from squib.cli.terminal.keys import parse_keys
    from squib.cli.terminal.rawmode import terminal_size
    from squib.sdk.aio_process import find_process, list_processes
    from squib.sdk.config import check_ref
    from squib.sdk.terminal import Attach

    check_ref(vm)
    keys = parse_keys(detach_keys, flag="--detach-keys")
    if output.json:
        raise InvalidArgument("attach does not support --json", hint=f"squib ps {vm} --json")
    async with options.connect() as engine:
        found = process_id or _newest_detached(vm, await list_processes(engine, vm)).id
        process = await find_process(engine, vm, found)
        if process.info.pty is None:
            return await follow(output, vm, process)
        check_terminal(output, hint=f"squib ps {vm} lists the commands")
        attach_options = AttachOptions(keys, past_until=process.info.stdout.end, announce=True)
        size = terminal_size(sys.stdin.fileno())
        return await run_terminal(output, engine, vm, Attach(process.id, size=size), attach_options)


def _newest_detached(ref: str, processes: Sequence[ProcessInfo]) -> ProcessInfo:
    """Return the newest running terminal without a client.

    Raises `NoTerminal`, which lists the terminals.
    """
    terminals = [process for process in processes if process.pty and process.running]
    detached = [process for process in terminals if not process.readers]
    if detached:
        return detached[-1]
    if not terminals:
        raise NoTerminal(
            f"VM {ref} has no terminal", hint=f"squib connect {ref} opens one; squib ps {ref} lists all commands"
        )
    names = ", ".join(f"{process.id} ({' '.join(process.argv)})" for process in terminals)
    raise NoTerminal(
        f"VM {ref} has no detached terminal; in use: {names}",
        hint=f"squib attach {ref} {terminals[-1].id}   (several clients can attach)",
    )
