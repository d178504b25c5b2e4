"""``squib resume``."""

from __future__ import annotations

from squib.cli.app import command
from squib.cli.args import options
from squib.cli.render import Output


@command("resume", examples=["squib resume web"])
async def resume(output: Output, vms: options.Refs) -> int:
    """Let paused VMs go on. A VM that runs is left as it is."""
    from squib.cli.actions.each import change_each

    return await change_each(output, vms, "resuming", lambda engine, ref: engine.resume_vm(ref))
