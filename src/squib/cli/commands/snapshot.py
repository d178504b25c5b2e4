"""``squib snapshot``: saved states of VMs."""

from __future__ import annotations

from typing import Annotated

import typer

from squib.cli.app import command, make_group
from squib.cli.args import options
from squib.cli.render import Column, Output

snapshot = make_group("snapshot", "Save the state of VMs, and manage what was saved.")

_COLUMNS = (
    Column("ID"),
    Column("NAME"),
    Column("VM"),
    Column("KIND"),
    Column("CPUS", right=True),
    Column("MEMORY", right=True),
    Column("SIZE", right=True),
    Column("MADE", right=True),
)


@command(
    "create",
    group=snapshot,
    examples=[
        "squib snapshot create web --name before-upgrade",
        "squib create --snapshot before-upgrade",
        "squib snapshot create web --disk-only",
    ],
)
async def create(
    output: Output,
    vm: options.Ref,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the snapshot. By default its ID.")] = None,
    disk_only: Annotated[
        bool, typer.Option("--disk-only", help="Save only the disk. VMs made from it boot. VM need not run.")
    ] = False,
    no_resume: Annotated[bool, typer.Option("--no-resume", help="Leave the VM paused.")] = False,
) -> None:
    """Save the memory and the disk of a VM, and print the snapshot's ID.

    A running VM is paused briefly. The snapshot stays when the VM is removed.
    """
    from squib.cli.progress import waiting
    from squib.sdk.config import check_ref

    for ref in filter(None, (vm, name)):
        check_ref(ref)
    async with options.connect() as engine, waiting(output, f"saving VM {vm}"):
        made = await engine.create_snapshot(vm, name=name, disk_only=disk_only, resume=not no_resume)
    if output.json:
        output.data(made)
    else:
        output.line(made.snapshot_id)


@command(
    "export",
    group=snapshot,
    examples=[
        "squib snapshot export before-upgrade before.tar",
        "squib snapshot export before-upgrade - | zstd > before.tar.zst",
    ],
)
async def export(
    output: Output,
    snapshot: options.SnapshotRef,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A new local file, or '-' for standard output.", show_default=False)
    ],
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace FILE if it exists.")] = False,
) -> None:
    """Write a snapshot to a file (a tar) that another machine can import.

    The file has the memory and the disk, with all secrets in them, and the kernel and the image that they need. FILE
    appears when it is complete, and only you can read it. Holes of memory and disk take no space in it.
    """
    from squib.cli.actions.moving import export_snapshot

    async with options.connect() as engine:
        await export_snapshot(output, engine, snapshot, file, replace=force)


@command(
    "import",
    group=snapshot,
    examples=[
        "squib snapshot import before.tar --name before",
        "ssh other squib snapshot export before - | squib snapshot import -",
    ],
)
async def import_(
    output: Output,
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="An exported snapshot, or '-' for standard input.", show_default=False),
    ],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the snapshot. By default the name that it had.")
    ] = None,
) -> None:
    """Store an exported snapshot as a new snapshot of this machine, and print its ID.

    A file that is damaged, truncated or not a snapshot is refused, and leaves nothing. If this machine cannot resume
    the memory (another QEMU, or another CPU with KVM), create --snapshot says so, and --cold boots from the disk.
    """
    from squib.cli.actions.moving import import_snapshot

    async with options.connect() as engine:
        await import_snapshot(output, engine, file, name=name)


@command("list", group=snapshot, aliases=["ls"])
async def list_snapshots(output: Output) -> None:
    """List the snapshots, oldest first."""
    from datetime import UTC, datetime

    from squib.cli.args.units import show_age, show_bytes

    async with options.connect() as engine:
        snapshots = await engine.snapshots()
    if output.json:
        output.data(snapshots)
        return
    now = datetime.now(UTC)
    output.table(
        _COLUMNS,
        [
            [
                found.snapshot_id,
                found.name,
                found.vm_name,
                "disk" if found.disk_only else "memory, disk",
                str(found.vcpu_count),
                show_bytes(found.mem_size_mib << 20),
                show_bytes(found.size_bytes),
                f"{show_age(found.created_at, now)} ago",
            ]
            for found in snapshots
        ],
    )


@command("inspect", group=snapshot, examples=["squib snapshot inspect before-upgrade"])
async def inspect(output: Output, snapshots: options.SnapshotRefs) -> int:
    """Show the details of snapshots as JSON."""
    from squib.cli.actions.each import for_each

    found, status = await for_each(output, snapshots, lambda engine, ref: engine.snapshot(ref))
    output.data(found)
    return status


@command("delete", group=snapshot, aliases=["rm"], examples=["squib snapshot rm before-upgrade"])
async def delete(output: Output, snapshots: options.SnapshotRefs) -> int:
    """Delete snapshots. VMs created from them keep running."""
    from squib.cli.actions.each import for_each
    from squib.sdk.client import EngineClient

    async def act(engine: EngineClient, ref: str) -> dict[str, object]:
        await engine.delete_snapshot(ref)
        if not output.json:
            output.line(ref)
        return {"snapshot": ref, "deleted": True}

    deleted, status = await for_each(output, snapshots, act)
    if output.json:
        output.data(deleted)
    return status
