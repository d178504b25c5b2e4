"""``squib kernel``: the kernels that VMs boot."""

from __future__ import annotations

from typing import Annotated

import typer

from squib.cli.app import command, make_group
from squib.cli.args import options
from squib.cli.commands.image import short_digest
from squib.cli.render import Column, Output

kernel = make_group("kernel", "Manage the kernels that VMs boot.")

_COLUMNS = (
    Column("VERSION"),
    Column("DIGEST"),
    Column("SIZE", right=True),
    Column("BUILT", right=True),
    Column("USED BY"),
)


@command("list", group=kernel, aliases=["ls"])
async def list_kernels(output: Output) -> None:
    """List the kernels in the cache."""
    from datetime import UTC, datetime

    from squib.cli.args.units import show_age, show_bytes

    async with options.connect() as engine:
        kernels = await engine.kernels()
    if output.json:
        output.data(kernels)
        return
    now = datetime.now(UTC)
    output.table(
        _COLUMNS,
        [
            [
                kernel.version or "unknown",
                short_digest(kernel.digest),
                show_bytes(kernel.size_bytes),
                f"{show_age(kernel.built_at, now)} ago",
                ", ".join(kernel.in_use_by),
            ]
            for kernel in kernels
        ],
    )
    for kernel in kernels:
        if kernel.damage:
            digest = short_digest(kernel.digest)
            output.note(f"kernel {digest} is damaged: {kernel.damage} (squib kernel build --rebuild)")


@command("build", group=kernel, examples=["squib kernel build", "squib kernel build --rebuild"])
async def build(
    output: Output,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Download the newest kernel. Existing VMs keep theirs.")
    ] = False,
) -> None:
    """Download and prepare a kernel, unless it is in the cache.

    squib run and squib create do this automatically.
    """
    from squib.cli.progress import steps

    async with options.connect() as engine:
        with steps(output, "kernel") as report:
            built = await engine.build_kernel(rebuild=rebuild, on_progress=report)
    if output.json:
        output.data(built)
    else:
        output.line(f"{built.version} {built.digest}")


@command("remove", group=kernel, aliases=["rm"], examples=["squib kernel rm 6.12.43+deb13-cloud-amd64"])
async def remove(
    output: Output,
    ref: Annotated[
        str,
        typer.Argument(
            metavar="VERSION|DIGEST",
            help="Version, or the first digits of the digest, from squib kernel list.",
            show_default=False,
        ),
    ],
) -> None:
    """Remove an unused kernel from the cache."""
    async with options.connect() as engine:
        await engine.remove_kernel(ref)
    if output.json:
        output.data({"kernel": ref, "removed": True})
    else:
        output.line(ref)
