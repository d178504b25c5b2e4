"""``squib image``: the root filesystems of VMs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from squib.cli.app import command, make_group
from squib.cli.args import options
from squib.cli.render import Column, Output

image = make_group("image", "Manage images: the root filesystems of VMs.")

_COLUMNS = (
    Column("NAME"),
    Column("DIGEST"),
    Column("SIZE", right=True),
    Column("BUILT", right=True),
    Column("USED BY"),
)

_Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of the image: base or python3.13.", show_default=False)
]


@command("list", group=image, aliases=["ls"])
async def list_images(output: Output) -> None:
    """List the images in the cache."""
    from datetime import UTC, datetime

    from squib.cli.args.units import show_age, show_bytes

    async with options.connect() as engine:
        images = await engine.images()
    if output.json:
        output.data(images)
        return
    now = datetime.now(UTC)
    output.table(
        _COLUMNS,
        [
            [
                image.name or "none",
                short_digest(image.digest),
                show_bytes(image.size_bytes),
                f"{show_age(image.built_at, now)} ago",
                ", ".join(image.in_use_by),
            ]
            for image in images
        ],
    )
    for image in images:
        if image.damage:
            repair = f" (squib image build {image.name} --rebuild)" if image.name else ""
            output.note(f"image {image.name or short_digest(image.digest)} is damaged: {image.damage}{repair}")


@command("build", group=image, examples=["squib image build base", "squib image build python3.13 --rebuild"])
async def build(
    output: Output,
    name: _Name,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Build again with the newest packages. Existing VMs keep their image.")
    ] = False,
) -> None:
    """Build an image, unless it is in the cache.

    squib run and squib create do this automatically.
    """
    from squib.cli.args.units import show_bytes
    from squib.cli.progress import steps
    from squib.sdk.config import check_ref

    check_ref(name)
    async with options.connect() as engine:
        with steps(output, f"image {name}") as report:
            built = await engine.build_image(name, rebuild=rebuild, on_progress=report)
    if output.json:
        output.data(built)
    else:
        output.line(f"{built.name} {built.digest} {show_bytes(built.size_bytes)}")


@command("remove", group=image, aliases=["rm"])
async def remove(output: Output, name: _Name) -> None:
    """Remove an unused image from the cache."""
    from squib.sdk.config import check_ref

    check_ref(name)
    async with options.connect() as engine:
        await engine.remove_image(name)
    if output.json:
        output.data({"image": name, "removed": True})
    else:
        output.line(name)


@command(
    "pack", group=image, examples=["squib image pack ./tree my.squashfs", "squib image pack my.tar.gz my.squashfs"]
)
async def pack(
    output: Output,
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A directory or a tar archive, which may be compressed.")
    ],
    target: Annotated[Path, typer.Argument(metavar="FILE", help="The squashfs file to create. It must not exist.")],
) -> None:
    """Pack a directory or tar archive into a squashfs for --rootfs."""
    from squib.cli.progress import waiting
    from squib.images.packing import pack_rootfs

    async with waiting(output, f"packing {source}"):
        rootfs = await pack_rootfs(source, target)
    if output.json:
        output.data({"rootfs": str(rootfs.path)})
    else:
        output.line(str(rootfs.path))


def short_digest(digest: str) -> str:
    """Return the first 12 digits of a digest."""
    return digest.removeprefix("sha256:")[:12]
