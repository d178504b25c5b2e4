"""``squib uninstall``: remove what squib has installed, or all that it has made."""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from squib.cli.actions.host import check_program, local_home
from squib.cli.app import command
from squib.cli.args import options
from squib.cli.exit_codes import FAILED
from squib.cli.render import Column, Output
from squib.errors import Conflict, EngineError, InvalidArgument, NotFound

if TYPE_CHECKING:
    from squib.core.uninstall import Plan
    from squib.models import SnapshotInfo, VMInfo
    from squib.paths import Home
    from squib.sdk.client import EngineClient

_DRIVER = "firecracker"
_COLUMNS = (Column("SIZE", right=True), Column("PATH"), Column("NOTE"))
_PACKAGES = {
    "mmdebstrap": "mmdebstrap",
    "qemu-system-x86_64": "qemu-system-x86",
    "sqfstar": "squashfs-tools",
}
"""Programs that ``squib doctor --fix`` installs and that few others need, with their packages."""


@command(
    "uninstall",
    examples=["squib uninstall firecracker", "squib uninstall --all", "squib uninstall --all --vms --yes"],
)
async def uninstall(
    output: Output,
    program: Annotated[
        str | None, typer.Argument(metavar="[firecracker]", help="Program to remove.", show_default=False)
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Remove all that squib has installed, cached and recorded.")
    ] = False,
    with_vms: Annotated[bool, typer.Option("--vms", help="With --all: remove all VMs and snapshots too.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> int:
    """Remove Firecracker, or with --all everything below the state directory.

    Without Firecracker, VMs that run with it continue, and stopped ones cannot start.

    --all shows what it removes, asks, stops the engine and removes it. While VMs or snapshots exist it does
    nothing, unless --vms is given. Files that squib did not make are kept.
    """
    if everything == (program is not None):
        raise InvalidArgument("name what to remove", hint="squib uninstall firecracker, or squib uninstall --all")
    if with_vms and not everything:
        raise InvalidArgument("--vms works only with --all", hint="squib rm VM removes a VM")
    home = await local_home("squib uninstall")
    if program is not None:
        check_program(program)
        return await _uninstall_firecracker(output, home, yes=yes)
    return await _uninstall_all(output, home, with_vms=with_vms, yes=yes)


async def _uninstall_firecracker(output: Output, home: Home, *, yes: bool) -> int:
    from squib.cli.actions.confirm import confirm
    from squib.drivers.firecracker.install import uninstall
    from squib.drivers.firecracker.installed import own_paths

    found = bool(own_paths(home))
    users = await _firecracker_users(home) if found else []
    if users:
        output.note(f"these VMs use Firecracker, and cannot start without it: {', '.join(users)}")
    removed = found and (not users or await confirm(output, "Remove Firecracker?", yes=yes))
    if removed:
        await uninstall(home)
    if output.json:
        output.data({"program": "firecracker", "removed": removed, "vms": users})
    elif removed:
        output.line("removed Firecracker")
    elif not found:
        output.line("Firecracker is not installed")
    return FAILED if found and not removed else 0


async def _firecracker_users(home: Home) -> list[str]:
    """Return the names of the VMs whose driver is Firecracker.

    If no engine starts, the IDs of those that have ever run with it.
    """
    from squib.core.uninstall import vm_directories

    ids = vm_directories(home)
    if not ids:
        return []
    try:
        async with options.connect() as engine:
            return [vm.name for vm in await engine.vms() if vm.driver == _DRIVER]
    except EngineError:
        return [vm_id for vm_id in ids if home.vm(vm_id).driver(_DRIVER).exists()]


async def _uninstall_all(output: Output, home: Home, *, with_vms: bool, yes: bool) -> int:
    import asyncio

    from squib.cli.actions.confirm import confirm
    from squib.core.uninstall import plan_removal, remove_all
    from squib.sdk.local import make_exclusive

    async with options.connect() as engine:
        vms, snapshots = await _all_vms(engine, home), await _all_snapshots(engine, home)
        plan = await asyncio.to_thread(plan_removal, home)
        if not output.json:
            _show_plan(output, home, plan, vms, snapshots)
        if (vms or snapshots) and not with_vms:
            what = "VMs" if vms else "snapshots"
            names = ", ".join(found.name for found in (vms or snapshots))
            hint = "remove VMs and snapshots too: squib uninstall --all --vms   (their disks are lost)"
            raise Conflict(f"{what} exist: {names}", hint=hint)
        removed = bool(plan.items) and await confirm(output, f"Remove {home.root}?", yes=yes)
        if removed:
            for vm in vms:
                with suppress(NotFound):  # it may have gone with its parent
                    await engine.delete_vm(vm.vm_id)
            for snapshot in snapshots:
                await engine.delete_snapshot(snapshot.snapshot_id)
            async with make_exclusive(home):
                plan = await asyncio.to_thread(remove_all, home)
    _report_all(output, home, plan, vms, snapshots, removed=removed)
    return 0 if removed or not plan.items else FAILED


async def _all_vms(engine: EngineClient, home: Home) -> list[VMInfo]:
    """Return all VMs. An engine is started only if there may be one."""
    from squib.core.uninstall import vm_directories
    from squib.sdk.local import engine_answers

    return await engine.vms() if vm_directories(home) or engine_answers(home) else []


async def _all_snapshots(engine: EngineClient, home: Home) -> list[SnapshotInfo]:
    """Return all snapshots. An engine is started only if there is one."""
    from squib.core.uninstall import snapshot_directories

    return await engine.snapshots() if snapshot_directories(home) else []


def _show_plan(output: Output, home: Home, plan: Plan, vms: list[VMInfo], snapshots: list[SnapshotInfo]) -> None:
    from squib.cli.args.units import show_bytes

    if not plan.items:
        output.line(f"squib has no files in {home.root}")
    else:
        rows = [[show_bytes(item.size_bytes), str(item.path), item.note] for item in plan.items]
        output.table(_COLUMNS, rows)
        output.line(f"{show_bytes(plan.size_bytes)} in all")
    if vms:
        output.line(f"VMs: {', '.join(vm.name for vm in vms)}")
    if snapshots:
        output.line(f"snapshots: {', '.join(snapshot.name for snapshot in snapshots)}")
    for path in plan.kept:
        output.line(f"kept, since squib did not make it: {path}")


def _report_all(
    output: Output, home: Home, plan: Plan, vms: list[VMInfo], snapshots: list[SnapshotInfo], *, removed: bool
) -> None:
    packages = _installed_packages()
    advice = shlex.join([*([] if os.geteuid() == 0 else ["sudo"]), "apt-get", "remove", *packages]) if packages else ""
    if output.json:
        output.data(
            {
                "home": str(home.root),
                "items": [
                    {"path": str(item.path), "size_bytes": item.size_bytes, "note": item.note} for item in plan.items
                ],
                "kept": [str(path) for path in plan.kept],
                "vms": [vm.name for vm in vms],
                "snapshots": [snapshot.name for snapshot in snapshots],
                "packages": packages,
                "removed": removed,
            }
        )
    elif removed:
        output.line(f"removed {home.root}" if not plan.kept else f"removed what squib made in {home.root}")
        if advice:
            output.line(f"Debian packages are kept. If nothing else needs them: {advice}")


def _installed_packages() -> list[str]:
    from squib.errors import DependencyMissing
    from squib.host.proc import find_tool

    found = []
    for program, package in _PACKAGES.items():
        try:
            find_tool(program)
        except DependencyMissing:
            continue
        found.append(package)
    return found
