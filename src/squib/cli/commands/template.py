"""``squib template``: saved VMs that new ones are cloned from."""

from __future__ import annotations

from typing import Annotated

import typer

from squib.cli.app import command, make_group
from squib.cli.args import options
from squib.cli.render import Column, Output

template = make_group("template", "Manage templates: saved VMs that new VMs are cloned from.")

_COLUMNS = (
    Column("ID"),
    Column("RUNTIME"),
    Column("CPUS", right=True),
    Column("MEMORY", right=True),
    Column("DISK", right=True),
    Column("DRIVER"),
    Column("SIZE", right=True),
    Column("MADE", right=True),
    Column("USED", right=True),
)

_ID = Annotated[str, typer.Argument(metavar="ID", help="ID of the template: squib template ls.", show_default=False)]


@command("list", group=template, aliases=["ls"])
async def list_templates(output: Output) -> None:
    """List the templates, the one used last first.

    squib makes them: the first VM of a configuration boots, and leaves a template.
    """
    from datetime import UTC, datetime

    from squib.cli.args.units import show_age, show_bytes

    async with options.connect() as engine:
        templates = await engine.templates()
    if output.json:
        output.data(templates)
        return
    now = datetime.now(UTC)
    output.table(
        _COLUMNS,
        [
            [
                found.template_id,
                found.runtime or "own rootfs",
                str(found.vcpu_count),
                show_bytes(found.mem_size_mib << 20),
                show_bytes(found.disk_size_mib << 20),
                found.driver,
                show_bytes(found.size_bytes),
                f"{show_age(found.created_at, now)} ago",
                f"{show_age(found.used_at, now)} ago",
            ]
            for found in templates
        ],
    )


@command("build", group=template, examples=["squib template build", "squib template build --runtime python3.13 -m 1g"])
async def build(
    output: Output,
    vcpus: options.VCPUs = None,
    memory: options.Memory = None,
    disk: options.Disk = None,
    runtime: options.Runtime = None,
    kernel: options.Kernel = None,
    rootfs: options.Rootfs = None,
    boot_args: options.BootArgs = None,
    nested: options.Nested = False,
    driver: options.Driver = None,
    boot_timeout: options.BootTimeout = options.DEFAULT_BOOT_TIMEOUT,
) -> None:
    """Make the template of a configuration in advance, and print its ID.

    A VM is booted, saved and deleted. If the template exists, it is kept.
    """
    from squib.cli.progress import steps

    boot_timeout_s = options.parse_boot_timeout(boot_timeout)
    config = options.make_vm_config(
        name=None, project=None, vcpus=vcpus, memory=memory, disk=disk, runtime=runtime, kernel=kernel,
        rootfs=rootfs, boot_args=boot_args, nested=nested, env=None, env_file=None, driver=driver,
    )  # fmt: skip
    async with options.connect() as engine:
        with steps(output, "template") as report:
            made = await engine.build_template(config, boot_timeout_s=boot_timeout_s, on_progress=report)
    if output.json:
        output.data(made)
    else:
        output.line(made.template_id)


@command("remove", group=template, aliases=["rm"])
async def remove(output: Output, template_id: _ID) -> None:
    """Remove a template. VMs that were cloned from it go on.

    The next VM of its configuration boots, and leaves a new one.
    """
    from squib.sdk.config import check_ref

    check_ref(template_id)
    async with options.connect() as engine:
        await engine.remove_template(template_id)
    if output.json:
        output.data({"template_id": template_id, "removed": True})
    else:
        output.line(template_id)


@command("prune", group=template)
async def prune(
    output: Output,
    everything: Annotated[bool, typer.Option("--all", help="Remove all templates.")] = False,
) -> None:
    """Remove templates that were not used for two weeks, or take more than 8 GiB together.

    The engine does this too, when it starts and after it has made a template.
    """
    async with options.connect() as engine:
        removed = await engine.prune_templates(everything=everything)
    if output.json:
        output.data({"removed": removed})
    else:
        for template_id in removed:
            output.line(template_id)
