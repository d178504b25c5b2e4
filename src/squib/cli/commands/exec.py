"""``squib exec``."""

from __future__ import annotations

from typing import Annotated

import typer

from squib.cli import options
from squib.cli.app import command
from squib.cli.render import Output
from squib.errors import InvalidArgument


@command(
    "exec",
    takes_command=True,
    examples=[
        "squib exec web ls -la /srv",
        "squib exec web sh -c 'echo $HOME | wc -c'",
        "squib exec --user nobody --workdir /tmp -e KEY=value web ./job",
        "tar c . | squib exec -i web tar x -C /srv",
    ],
)
async def exec_(
    output: Output,
    vm: options.Ref,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="COMMAND", help="Program and arguments; no shell.", show_default=False),
    ] = None,
    user: options.User = None,
    workdir: options.Workdir = None,
    env: options.CommandEnv = None,
    timeout: options.Timeout = None,
    interactive: options.Interactive = False,
) -> int:
    """Run a command in a VM that runs. Flags stand before the VM; all after it belongs to the command.

    Output streams as it comes, byte for byte. The status is that of the command: 128 + n if signal n ended it, 124 if
    its timeout did, 127 if there is no such program. Ctrl-C interrupts the command, a second one kills it. With --json,
    the output is printed as one object when the command has ended.
    """
    from squib.cli.session import run_command
    from squib.sdk.command import exec_request
    from squib.sdk.config import check_ref

    check_ref(vm)
    words = words[1:] if words and words[0] == "--" else words
    if not words:
        raise InvalidArgument("there is no command to run", hint=f"squib exec {vm} COMMAND...")
    request = exec_request(
        words, timeout=options.parse_timeout(timeout), env=options.parse_env(env or []), cwd=workdir, user=user
    )
    async with options.connect() as engine:
        return await run_command(output, engine, vm, request, interactive=interactive)
