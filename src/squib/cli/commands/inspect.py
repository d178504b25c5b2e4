"""``squib inspect``."""

from __future__ import annotations

from squib.cli.app import command
from squib.cli.args import options
from squib.cli.render import Output


@command("inspect", examples=["squib inspect web", "squib inspect web db | jq '.[].state'"])
async def inspect(output: Output, vms: options.Refs) -> int:
    """Show VM details as JSON.

    The result is an array with one object per VM. Of environment variables, it contains only the names.
    """
    from squib.cli.actions.each import for_each

    found, status = await for_each(output, vms, lambda engine, ref: engine.vm_details(ref))
    output.data(found)
    return status
