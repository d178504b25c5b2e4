"""``squib download``."""

from __future__ import annotations

from typing import Annotated

import typer

from squib.cli.app import command
from squib.cli.args import options
from squib.cli.render import Output


@command(
    "download",
    examples=[
        "squib download web /var/log/syslog .",
        "squib download web /srv/app /etc/hosts backup/",
        "squib download web /srv/app/. app           # what is in it, not itself",
        "squib download web /var/tmp/shop.sql - | psql shop",
    ],
)
async def download(
    output: Output,
    vm: options.Ref,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC... DST",
            help="Absolute paths in the VM, and a path of this machine ('-': standard output, for one file).",
            show_default=False,
        ),
    ],
    keep_owner: options.KeepOwner = False,
    unsafe_links: options.UnsafeLinks = False,
) -> None:
    """Copy files and directories out of a VM that runs.

    If DST is a directory here, sources go into it under their names; else the one source becomes DST. Permission bits,
    times and links are kept; all belongs to you, but for --keep-owner. Nothing that the VM sends lands outside DST:
    devices, FIFOs, and links that lead out of a copied directory are refused. A file appears in one step, and so does a
    new directory: what breaks off, by Ctrl-C too, leaves nothing of it.
    """
    from squib.cli.actions.copying import Copy

    copy = Copy(output, keep_owner=keep_owner, unsafe_links=unsafe_links)
    *sources, target = paths
    async with options.connect() as engine:
        await copy.download(engine, vm, sources, target)
