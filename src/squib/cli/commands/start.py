"""``squib start``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from squib.cli import options
from squib.cli.app import command
from squib.cli.render import Output

if TYPE_CHECKING:
    from squib.models import VMInfo
    from squib.sdk.client import EngineClient


@command("start", examples=["squib start web", "squib start web db --boot-timeout 2m"])
async def start(
    output: Output, vms: options.Refs, boot_timeout: options.BootTimeout = options.DEFAULT_BOOT_TIMEOUT
) -> int:
    """Start VMs that are stopped; returns when they are ready. A VM that runs is left as it is."""
    from squib.cli.each import for_each
    from squib.cli.progress import waiting
    from squib.cli.units import parse_duration_s

    boot_timeout_s = parse_duration_s(boot_timeout, flag="--boot-timeout")

    async def act(engine: EngineClient, ref: str) -> VMInfo:
        async with waiting(output, f"starting VM {ref}"):
            vm = await engine.start_vm(ref, boot_timeout_s=boot_timeout_s)
        if not output.json:
            output.line(ref)
        return vm

    started, status = await for_each(output, vms, act)
    if output.json:
        output.data(started)
    return status
