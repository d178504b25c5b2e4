"""``squib inspect``."""

from __future__ import annotations

from squib.cli.app import command
from squib.cli.args import options
from squib.cli.render import Output


@command("inspect", examples=["squib inspect web", "squib inspect web db | jq '.[].state'"])
async def inspect(output: Output, vms: options.Refs) -> int:
    """Print all that is known of VMs, as a JSON array.

    Values of environment variables are not among it, only their names.
    """
    from squib.cli.actions.each import for_each

    found, status = await for_each(output, vms, lambda engine, ref: engine.vm(ref))
    output.data(found)
    return status
