"""``squib connect``."""

from __future__ import annotations

from squib.cli.app import command
from squib.cli.args import options
from squib.cli.render import Output
from squib.cli.terminal.keys import DEFAULT_DETACH_KEYS


@command(
    "connect",
    examples=["squib connect web", "squib connect --user dev --workdir /srv web", "squib connect -e EDITOR=vi web"],
)
async def connect(
    output: Output,
    vm: options.Ref,
    user: options.User = None,
    sudo: options.Sudo = False,
    workdir: options.Workdir = None,
    env: options.CommandEnv = None,
    env_file: options.EnvFile = None,
    detach_keys: options.DetachKeysFlag = DEFAULT_DETACH_KEYS,
) -> int:
    """Open a shell in a VM.

    The shell is the user's login shell; its exit status is squib's. Ctrl-] detaches: the shell keeps running, and squib
    attach reattaches to it. It also keeps running if squib is killed or the connection is lost.
    """
    from squib.cli.terminal.attach import check_terminal, open_shell
    from squib.cli.terminal.keys import parse_keys
    from squib.sdk.config import check_ref

    check_ref(vm)
    keys = parse_keys(detach_keys, flag="--detach-keys")
    check_terminal(output, hint=f"squib exec -i {vm} sh reads commands from standard input")
    request = options.make_request(
        None, user=user, sudo=sudo, workdir=workdir, env=options.parse_env(env, env_file), pty=True
    )
    async with options.connect() as engine:
        return await open_shell(output, engine, vm, request, keys)
