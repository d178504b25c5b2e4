"""``squib pause``."""

from __future__ import annotations

from squib.cli.app import command
from squib.cli.args import options
from squib.cli.render import Output


@command("pause", examples=["squib pause web"])
async def pause(output: Output, vms: options.Refs) -> int:
    """Pause VMs: memory is kept, no CPU is used.

    A VM that is already paused is left alone.
    """
    from squib.cli.actions.each import change_each

    return await change_each(output, vms, "pausing", lambda engine, ref: engine.pause_vm(ref))
