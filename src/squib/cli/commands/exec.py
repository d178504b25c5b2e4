"""``squib exec``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from squib.cli.app import command
from squib.cli.args import options
from squib.cli.render import Output
from squib.cli.terminal.keys import DEFAULT_DETACH_KEYS
from squib.errors import InvalidArgument


@command(
    "exec",
    takes_command=True,
    examples=[
        "squib exec web ls -la /srv",
        "squib exec web sh -c 'echo $HOME | wc -c'",
        "squib exec --user nobody --workdir /tmp -e KEY=value web ./job",
        "tar c . | squib exec -i web tar x -C /srv",
        "squib exec -it web bash",
        "squib exec -d web ./server --port 80",
        "squib exec -d --restore-signal USR1 web ./server",
    ],
)
async def exec_(
    output: Output,
    vm: options.Ref,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="COMMAND...", help="Program and arguments. They are not passed through a shell.", show_default=False
        ),
    ] = None,
    user: options.User = None,
    sudo: options.Sudo = False,
    workdir: options.Workdir = None,
    env: options.CommandEnv = None,
    env_file: options.EnvFile = None,
    timeout: options.Timeout = None,
    interactive: options.Interactive = False,
    tty: options.Tty = False,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Run the command in the background, and print its ID.")
    ] = False,
    restore_signal: Annotated[
        str | None,
        typer.Option(
            "--restore-signal",
            metavar="SIGNAL",
            help="With -d: signal to send when the command continues in a fork or a copy, or after a suspend.",
        ),
    ] = None,
    detach_keys: options.DetachKeysFlag = DEFAULT_DETACH_KEYS,
) -> int:
    """Run a command in a running VM.

    Options go before the VM; everything after it belongs to the command. Output is streamed, byte for byte. The exit
    status is the command's: 128 + n if signal n ended it, 124 if it timed out, 127 if the program does not exist. The
    first Ctrl-C interrupts the command, the second kills it. With --json, the result is printed as one object when the
    command has ended.

    With a terminal (-t, or -i from a terminal), all keys go to the command, except Ctrl-], which detaches. The command
    then keeps running, also if squib is killed. squib attach reattaches to it.
    """
    from squib.cli.actions.command import run_command, start_in_background
    from squib.cli.args.signals import parse_signal
    from squib.cli.terminal.attach import AttachOptions, check_terminal, run_terminal
    from squib.cli.terminal.keys import parse_keys
    from squib.sdk.config import check_ref

    check_ref(vm)
    words = words[1:] if words and words[0] == "--" else words
    if not words:
        raise InvalidArgument("no command given", hint=f"squib exec {vm} COMMAND...")
    keys = parse_keys(detach_keys, flag="--detach-keys")
    if detach and (interactive or tty):
        raise InvalidArgument(
            "-d cannot be used together with -i or -t", hint="use squib exec -it, and ctrl-] to detach"
        )
    if restore_signal is not None and not detach:
        raise InvalidArgument("--restore-signal works only with -d", hint=f"squib exec -d {vm} COMMAND...")
    if tty:
        check_terminal(output, hint=f"squib exec -i {vm} passes input that is not a terminal")
    pty = tty or (interactive and not output.json and sys.stdin.isatty() and sys.stdout.isatty())
    request = options.make_request(
        words, user=user, sudo=sudo, workdir=workdir, env=options.parse_env(env, env_file), timeout=timeout,
        background=detach, pty=pty,
        restore_signal=parse_signal(restore_signal, flag="--restore-signal") if restore_signal else None,
    )  # fmt: skip
    async with options.connect() as engine:
        if detach:
            return await start_in_background(output, engine, vm, request)
        if pty:
            return await run_terminal(output, engine, vm, request, AttachOptions(keys))
        return await run_command(output, engine, vm, request, interactive=interactive)
