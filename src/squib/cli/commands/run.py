"""``squib run``: run a command in a new VM."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import Annotated

import typer

from squib.cli.app import command
from squib.cli.args import options
from squib.cli.render import Output
from squib.cli.terminal.keys import DEFAULT_DETACH_KEYS
from squib.errors import InvalidArgument


@command(
    "run",
    takes_command=True,
    examples=[
        "squib run -- uname -a",
        "squib run python3 -c 'print(6*7)'",
        "squib run --memory 1g --cpus 2 --timeout 5m -e KEY=value -- make test",
        "echo 'select 1' | squib run -i -- cat",
        "squib run -it -- bash",
    ],
)
async def run(
    output: Output,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="COMMAND...", help="Program and arguments. They are not passed through a shell.", show_default=False
        ),
    ] = None,
    name: options.Name = None,
    project: options.Project = None,
    vcpus: options.VCPUs = None,
    memory: options.Memory = None,
    disk: options.Disk = None,
    runtime: options.Runtime = None,
    kernel: options.Kernel = None,
    rootfs: options.Rootfs = None,
    boot_args: options.BootArgs = None,
    nested: options.Nested = False,
    driver: options.Driver = None,
    no_jailer: options.NoJailer = False,
    cold: options.Cold = False,
    snapshot: options.FromSnapshot = None,
    env: options.Env = None,
    env_file: options.EnvFile = None,
    user: options.User = None,
    sudo: options.Sudo = False,
    workdir: options.Workdir = None,
    timeout: options.Timeout = None,
    boot_timeout: options.BootTimeout = options.DEFAULT_BOOT_TIMEOUT,
    interactive: options.Interactive = False,
    tty: options.Tty = False,
    detach_keys: options.DetachKeysFlag = DEFAULT_DETACH_KEYS,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the VM running afterwards, and print its name on standard error.")
    ] = False,
) -> int:
    """Run a command in a new VM, then remove the VM.

    The exit status is the command's: 128 + n if signal n ended it, 124 if it timed out. Unless --keep is given, the VM
    is always removed, even if squib is interrupted or killed.
    """
    from squib.cli.actions import launch
    from squib.cli.actions.command import run_command
    from squib.cli.runner import shielded
    from squib.cli.terminal.attach import AttachOptions, check_terminal, run_terminal
    from squib.cli.terminal.keys import DetachKeys, parse_keys

    if not words:
        raise InvalidArgument("no command given", hint="squib run -- COMMAND...   (squib create only creates a VM)")
    keys = parse_keys(detach_keys, flag="--detach-keys")
    if tty:
        check_terminal(output, hint="squib run -i passes input that is not a terminal")
    pty = tty or (interactive and not output.json and sys.stdin.isatty() and sys.stdout.isatty())
    request = options.make_request(words, user=user, sudo=sudo, workdir=workdir, env=None, timeout=timeout, pty=pty)
    boot_timeout_s = options.parse_boot_timeout(boot_timeout)
    config = options.make_vm_config(
        name=name, project=project, vcpus=vcpus, memory=memory, disk=disk, runtime=runtime, kernel=kernel,
        rootfs=rootfs, boot_args=boot_args, nested=nested, env=env, env_file=env_file, driver=driver,
        no_jailer=no_jailer, cold=cold, snapshot=snapshot,
    )  # fmt: skip
    async with options.connect() as engine:
        await launch.check_driver(output, engine, config)
        await launch.ensure_assets(output, engine, config)
        # A signal has to wait for the answer, which says which VM to remove.
        vm = await shielded(engine.create_vm(config, bound=not keep))
        async with nullcontext() if keep else engine.bind_lifetime(vm.vm_id):
            try:
                if keep:  # before the boot, which may fail or be interrupted
                    output.note(f"VM {vm.name} is kept; remove it with: squib rm {vm.name}")
                await launch.boot(output, engine, vm, boot_timeout_s=boot_timeout_s)
                if pty:  # if the VM is removed at the end, there is nothing to detach from
                    attach_options = AttachOptions(keys if keep else DetachKeys(), stays=keep)
                    return await run_terminal(output, engine, vm.vm_id, request, attach_options)
                return await run_command(output, engine, vm.vm_id, request, interactive=interactive)
            finally:
                if not keep:
                    await shielded(launch.remove(engine, vm))
