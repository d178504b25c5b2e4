"""``squib create``."""

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
    "create",
    examples=[
        "squib create --name web --memory 512 --cpus 2",
        "squib create --runtime python3.13 --disk 20gb --project ci",
        "squib create --rootfs ./my.squashfs --kernel ./vmlinux --no-start",
        "squib create --connect",
        "squib create --snapshot before-upgrade",
        'VM=$(squib create) && squib exec "$VM" uname -a',
    ],
)
async def create(
    output: Output,
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
    user: options.VMUser = None,
    workdir: options.VMWorkdir = None,
    boot_timeout: options.BootTimeout = options.DEFAULT_BOOT_TIMEOUT,
    no_start: Annotated[bool, typer.Option("--no-start", help="Create the VM without starting it.")] = False,
    connect: Annotated[
        bool, typer.Option("--connect", help="Open a shell in the VM when it is ready, as squib connect does.")
    ] = False,
) -> int:
    """Create and start a VM, and print its ID.

    The VM is ready for commands when this returns. If it does not boot, it is removed again.
    """
    from squib.cli.actions.launch import check_driver
    from squib.cli.progress import late_steps
    from squib.cli.terminal.attach import check_terminal, open_shell
    from squib.cli.terminal.keys import parse_keys

    if connect and no_start:
        raise InvalidArgument("--connect and --no-start cannot be used together", hint="use one of them")
    if connect:
        check_terminal(output, hint="squib create, then squib exec -i VM sh")
    boot_timeout_s = options.parse_boot_timeout(boot_timeout)
    config = options.make_vm_config(
        name=name, project=project, vcpus=vcpus, memory=memory, disk=disk, runtime=runtime, kernel=kernel,
        rootfs=rootfs, boot_args=boot_args, nested=nested, env=env, env_file=env_file, user=user, workdir=workdir,
        driver=driver, no_jailer=no_jailer, cold=cold, snapshot=snapshot,
    )  # fmt: skip
    async with options.connect() as engine:
        await check_driver(output, engine, config)
        async with late_steps(output, f"creating VM {name}" if name else "creating a VM") as report:
            if no_start:
                vm = await engine.create_vm(config, on_progress=report)
            else:
                vm = await engine.launch_vm(config, boot_timeout_s=boot_timeout_s, on_progress=report)
        if output.json:
            output.data(vm)
            return 0
        output.line(vm.vm_id)
        if connect:
            request = options.make_request(None, user=None, sudo=False, workdir=None, env=None, pty=True)
            keys = parse_keys(DEFAULT_DETACH_KEYS, flag="--detach-keys")
            return await open_shell(output, engine, vm.name, request, keys)
    if sys.stdout.isatty():
        output.note(f"start it with: squib start {vm.name}" if no_start else f"try: squib connect {vm.name}")
    return 0
