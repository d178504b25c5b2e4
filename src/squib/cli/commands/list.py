"""``squib list``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from squib.cli.app import command
from squib.cli.args import options
from squib.cli.render import Column, Output

if TYPE_CHECKING:
    from datetime import datetime

    from squib.models import VMInfo

_COLUMNS = (
    Column("ID"), Column("NAME"), Column("STATE"), Column("RUNTIME"), Column("VCPUS", right=True),
    Column("MEMORY", right=True), Column("UPTIME", right=True), Column("REASON"),
)  # fmt: skip


@command("list", aliases=["ls"], examples=["squib ls", "squib ls --project ci", "squib rm $(squib ls -q)"])
async def list_vms(
    output: Output,
    project: Annotated[str | None, typer.Option(metavar="NAME", help="List only the VMs of this project.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only IDs, one per line.")] = False,
) -> None:
    """List VMs, oldest first."""
    from datetime import UTC, datetime

    async with options.connect() as engine:
        vms = await engine.vms(project=project)
    if quiet:
        for vm in vms:
            output.line(vm.vm_id)
    elif output.json:
        output.data(vms)
    else:
        now = datetime.now(UTC)
        output.table(_COLUMNS, [_row(vm, now) for vm in vms])


def _row(vm: VMInfo, now: datetime) -> list[str]:
    from squib.cli.args.units import show_age, show_mib

    running = vm.pid is not None and vm.started_at is not None
    uptime = show_age(vm.started_at, now) if running and vm.started_at else "-"
    return [
        vm.vm_id,
        vm.name,
        vm.state.value,
        vm.runtime or vm.rootfs,
        str(vm.vcpu_count),
        show_mib(vm.mem_size_mib),
        uptime,
        vm.reason,
    ]
