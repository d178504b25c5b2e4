"""``squib resume``."""

from __future__ import annotations

from squib.cli.app import command
from squib.cli.args import options
from squib.cli.render import Output


@command("resume", examples=["squib resume web"])
async def resume(output: Output, vms: options.Refs) -> int:
    """Resume paused VMs.

    A VM that is already running is left alone.
    """
    from squib.cli.actions.each import change_each

    return await change_each(output, vms, "resuming", lambda engine, ref: engine.resume_vm(ref))
