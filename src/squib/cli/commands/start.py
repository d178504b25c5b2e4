"""``squib start``."""

from __future__ import annotations

from typing import Annotated

import typer

from squib.cli.app import command
from squib.cli.args import options
from squib.cli.render import Output


@command("start", examples=["squib start web", "squib start web db --boot-timeout 2m"])
async def start(
    output: Output,
    vms: options.Refs,
    cold: Annotated[
        bool, typer.Option("--cold", help="Discard the memory of suspended VMs, and boot them from their disks.")
    ] = False,
    boot_timeout: options.BootTimeout = options.DEFAULT_BOOT_TIMEOUT,
) -> int:
    """Start VMs and wait until they are ready.

    Suspended VMs resume. A VM that is already running is left alone.
    """
    from squib.cli.actions.each import change_each

    boot_timeout_s = options.parse_boot_timeout(boot_timeout)
    return await change_each(
        output, vms, "starting", lambda engine, ref: engine.start_vm(ref, boot_timeout_s=boot_timeout_s, cold=cold)
    )
