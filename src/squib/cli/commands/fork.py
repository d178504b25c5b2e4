"""``squib fork``."""

from __future__ import annotations

from typing import Annotated

import typer

from squib.cli.app import command
from squib.cli.args import options
from squib.cli.exit_codes import FAILED
from squib.cli.render import Output
from squib.errors import InvalidArgument, SquibError


@command("fork", examples=["squib fork web", "squib fork web --count 10 --name try", "squib fork web --persistent"])
async def fork(
    output: Output,
    vm: options.Ref,
    count: Annotated[int, typer.Option("--count", "-n", metavar="N", help="How many VMs to make.")] = 1,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name of the new VM; of several: NAME-1, NAME-2, … By default their IDs."),
    ] = None,
    persistent: Annotated[
        bool, typer.Option("--persistent", help="Keep the new VMs when they stop, and when VM is removed.")
    ] = False,
    boot_timeout: options.BootTimeout = options.DEFAULT_BOOT_TIMEOUT,
) -> int:
    """Fork a running VM, and print the new IDs.

    Each fork continues from the VM's current memory and disk, with a name, an identity and random numbers of its own.
    The VM is paused briefly. The forks are removed when they stop or when VM is removed; --persistent keeps them.
    """
    from squib.cli.progress import waiting
    from squib.models import MAX_FORKS
    from squib.protocol.errors import to_wire
    from squib.sdk.config import check_ref

    if not 1 <= count <= MAX_FORKS:
        raise InvalidArgument(
            f"--count is {count}, not a number from 1 to {MAX_FORKS}", hint="squib fork VM --count 10"
        )
    for ref in filter(None, (vm, name)):
        check_ref(ref)
    boot_timeout_s = options.parse_boot_timeout(boot_timeout)
    async with options.connect() as engine, waiting(output, f"forking VM {vm}"):
        results = await engine.fork_vm(
            vm,
            count=count,
            name=name,
            persistence="persistent" if persistent else "ephemeral",
            boot_timeout_s=boot_timeout_s,
        )
    errors = [result for result in results if isinstance(result, SquibError)]
    if output.json:
        output.data(
            [{"error": to_wire(found)} if isinstance(found, SquibError) else {"vm": found} for found in results]
        )
    else:
        for result in results:
            if not isinstance(result, SquibError):
                output.line(result.vm_id)
        for error in errors:
            output.error(error)
    return FAILED if errors else 0
