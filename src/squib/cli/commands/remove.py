"""``squib remove``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from squib.cli.app import command
from squib.cli.args import options
from squib.cli.render import Output
from squib.errors import NotFound

if TYPE_CHECKING:
    from squib.sdk.client import EngineClient


@command("remove", aliases=["rm"], examples=["squib rm web", "squib rm -f web db", "squib rm $(squib ls -q)"])
async def remove(
    output: Output,
    vms: options.Refs,
    force: Annotated[bool, typer.Option("--force", "-f", help="Ignore VMs that do not exist.")] = False,
) -> int:
    """Remove VMs and their disks.

    Running VMs are stopped first.
    """
    from squib.cli.actions.each import for_each

    async def act(engine: EngineClient, ref: str) -> dict[str, object]:
        try:
            await engine.delete_vm(ref)
        except NotFound:
            if not force:
                raise
            return {"vm": ref, "removed": False}
        if not output.json:
            output.line(ref)
        return {"vm": ref, "removed": True}

    removed, status = await for_each(output, vms, act)
    if output.json:
        output.data(removed)
    return status
