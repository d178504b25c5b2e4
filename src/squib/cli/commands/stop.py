"""``squib stop``."""

from __future__ import annotations

from typing import Annotated

import typer

from squib.cli.app import command
from squib.cli.args import options
from squib.cli.render import Output


@command("stop", examples=["squib stop web", "squib stop --timeout 30s web db"])
async def stop(
    output: Output,
    vms: options.Refs,
    timeout: Annotated[
        str,
        typer.Option(
            "--timeout",
            "-t",
            metavar="TIME",
            help="Time for a clean shutdown before the VM is killed: 10 (seconds) or 30s.",
        ),
    ] = "3s",
) -> int:
    """Stop VMs: disks are kept, memory is not.

    The guest syncs its disk and powers off. If it has not after the timeout, it is killed. A VM that is not running is
    left alone.
    """
    from squib.cli.actions.each import change_each
    from squib.cli.args.units import parse_duration_s
    from squib.models.vm import MAX_VERB_TIMEOUT_S

    timeout_s = parse_duration_s(timeout, flag="--timeout", max_s=MAX_VERB_TIMEOUT_S)
    return await change_each(output, vms, "stopping", lambda engine, ref: engine.stop_vm(ref, timeout_s=timeout_s))
