"""``squib rollback``."""

from __future__ import annotations

from typing import Annotated

import typer

from squib.cli.app import command
from squib.cli.args import options
from squib.cli.render import Output


@command("rollback", examples=["squib snapshot create web --name before", "squib rollback web before"])
async def rollback(
    output: Output,
    vm: options.Ref,
    snapshot: Annotated[
        str, typer.Argument(metavar="SNAPSHOT", help="ID or name of a snapshot: squib snapshot ls.", show_default=False)
    ],
    boot_timeout: options.BootTimeout = options.DEFAULT_BOOT_TIMEOUT,
) -> None:
    """Roll a VM back to a snapshot, in place. Changes since then are lost.

    The VM keeps its ID and name, and runs afterwards.
    """
    from squib.cli.args.units import parse_duration_s
    from squib.cli.progress import waiting
    from squib.models.vm import MAX_VERB_TIMEOUT_S

    boot_timeout_s = parse_duration_s(boot_timeout, flag="--boot-timeout", max_s=MAX_VERB_TIMEOUT_S)
    async with options.connect() as engine, waiting(output, f"rolling back VM {vm}"):
        found = await engine.rollback_vm(vm, snapshot, boot_timeout_s=boot_timeout_s)
    if output.json:
        output.data(found)
    else:
        output.line(vm)
