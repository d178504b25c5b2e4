"""``squib suspend``."""

from __future__ import annotations

from squib.cli.app import command
from squib.cli.args import options
from squib.cli.render import Output


@command("suspend", examples=["squib suspend web", "squib start web"])
async def suspend(output: Output, vms: options.Refs) -> int:
    """Suspend VMs: their memory goes to the disk. squib start lets them go on.

    Commands in the background and terminals go on with the VM. Commands that a client waits for end. A VM that is
    already suspended is left alone.
    """
    from squib.cli.actions.each import change_each

    return await change_each(output, vms, "suspending", lambda engine, ref: engine.suspend_vm(ref))
