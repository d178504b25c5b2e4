"""The steps that ``run`` and ``create`` have in common."""

from __future__ import annotations

from contextlib import suppress

from squib.cli.progress import steps, waiting
from squib.cli.render import Output
from squib.errors import NotFound
from squib.models import VMConfig, VMInfo
from squib.sdk.client import EngineClient


async def check_driver(output: Output, engine: EngineClient, config: VMConfig) -> None:
    """Check that the driver that a user asked for works, before anything is built.

    With ``--verbose``, show which driver it is, and why. Raises `Unsupported`, with the reason.
    """
    if config.snapshot or (config.driver == "auto" and config.jailer and not output.verbose):
        return
    choice = await engine.choose_driver(config)
    output.detail(f"driver {choice.driver} ({choice.accelerator}): {choice.reason}")
    if not config.jailer:
        output.note("warning: --no-jailer: only Firecracker's own seccomp filters confine it")


async def ensure_assets(output: Output, engine: EngineClient, config: VMConfig) -> None:
    """Build the kernel and the image of a VM if the cache lacks them. A snapshot's are there.

    Shows the progress.
    """
    if config.snapshot:
        return
    if config.kernel_path is None:
        with steps(output, "kernel") as report:
            await engine.build_kernel(on_progress=report)
    if config.rootfs_path is None:
        with steps(output, f"image {config.runtime}") as report:
            await engine.build_image(config.runtime, on_progress=report)


async def boot(output: Output, engine: EngineClient, vm: VMInfo, *, boot_timeout_s: float) -> VMInfo:
    """Start a VM and show the progress."""
    async with waiting(output, f"starting VM {vm.name}"):
        return await engine.start_vm(vm.vm_id, boot_timeout_s=boot_timeout_s)


async def remove(engine: EngineClient, vm: VMInfo) -> None:
    """Delete a VM, unless it is already deleted."""
    with suppress(NotFound):
        await engine.delete_vm(vm.vm_id)
