"""``squib rollback``."""

from __future__ import annotations

from squib.cli.app import command
from squib.cli.args import options
from squib.cli.render import Output


@command("rollback", examples=["squib snapshot create web --name before", "squib rollback web before"])
async def rollback(
    output: Output,
    vm: options.Ref,
    snapshot: options.SnapshotRef,
    boot_timeout: options.BootTimeout = options.DEFAULT_BOOT_TIMEOUT,
) -> None:
    """Roll a VM back to a snapshot, in place. Changes since then are lost.

    The VM keeps its ID and name, and runs afterwards.
    """
    from squib.cli.progress import waiting

    boot_timeout_s = options.parse_boot_timeout(boot_timeout)
    async with options.connect() as engine, waiting(output, f"rolling back VM {vm}"):
        found = await engine.rollback_vm(vm, snapshot, boot_timeout_s=boot_timeout_s)
    if output.json:
        output.data(found)
    else:
        output.line(vm)
