"""``squib suspend``."""

from __future__ import annotations

from squib.cli.app import command
from squib.cli.args import options
from squib.cli.render import Output


@command("suspend", examples=["squib suspend web", "squib start web"])
async def suspend(output: Output, vms: options.Refs) -> int:
    """Suspend VMs: save their memory to the disk. squib start resumes them.

    Background commands and terminals continue then; foreground commands are killed. A VM that is already suspended is
    left alone.
    """
    from squib.cli.actions.each import change_each

    return await change_each(output, vms, "suspending", lambda engine, ref: engine.suspend_vm(ref))
