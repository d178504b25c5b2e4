"""``squib pause``."""

from __future__ import annotations

from squib.cli.app import command
from squib.cli.args import options
from squib.cli.render import Output


@command("pause", examples=["squib pause web"])
async def pause(output: Output, vms: options.Refs) -> int:
    """Halt VMs: they keep their memory and use no processor. A VM that is paused is left as it is."""
    from squib.cli.actions.each import change_each

    return await change_each(output, vms, "pausing", lambda engine, ref: engine.pause_vm(ref))
