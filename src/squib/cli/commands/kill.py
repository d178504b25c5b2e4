"""``squib kill``."""

from __future__ import annotations

import signal
from typing import Annotated

import typer

from squib.cli.app import command
from squib.cli.args import options
from squib.cli.render import Output
from squib.errors import EngineError, SquibError


@command("kill", examples=["squib kill web p3", "squib kill web p3 p4 --signal TERM", "squib kill web p3 -s 10"])
async def kill(
    output: Output,
    vm: options.Ref,
    ids: Annotated[
        list[str], typer.Argument(metavar="ID...", help="IDs of the commands, from squib ps.", show_default=False)
    ],
    signal_name: Annotated[
        str,
        typer.Option(
            "--signal", "-s", metavar="SIGNAL", help="Signal to send to the process group instead: TERM, INT or 15."
        ),
    ] = "KILL",
) -> int:
    """Kill commands in a VM, or send them a signal.

    By default the command and all its descendants are killed, also if the command itself has ended, and squib ps no
    longer lists it. Any other signal goes to the command's process group, or to a terminal's foreground job.
    """
    from squib.cli.args.signals import parse_signal
    from squib.sdk.command import process_path

    number = parse_signal(signal_name, flag="--signal")
    paths = {process_id: process_path(vm, process_id) for process_id in ids}
    done: list[str] = []
    status = 0
    async with options.connect() as engine:
        for process_id, path in paths.items():
            try:
                if number == signal.SIGKILL:
                    await engine.request("DELETE", path)
                else:
                    await engine.request("POST", f"{path}/signal", {"signal": number})
            except EngineError:
                raise
            except SquibError as error:
                output.error(error)
                status = 1
                continue
            done.append(process_id)
            if not output.json:
                output.line(process_id)
    if output.json:
        output.data([{"vm": vm, "id": process_id, "signal": number} for process_id in done])
    return status
