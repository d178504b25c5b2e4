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
        "squib download web /srv/app/. app           # the contents of /srv/app",
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
            help="Paths in the VM; then a local path, or '-' to write one file to standard output.",
            show_default=False,
        ),
    ],
    keep_owner: options.KeepOwner = False,
    unsafe_links: options.UnsafeLinks = False,
    user: options.FilesUser = None,
) -> None:
    """Copy files and directories out of a running VM.

    If DST is a directory, the sources are copied into it; otherwise the single source is copied to DST itself.
    Permission bits, times and links are kept. The files belong to you unless --keep-owner is given. Nothing is ever
    written outside DST: devices, FIFOs and links that point out of a copied directory are rejected. Each file, and each
    new directory, appears only when it is complete: an interrupted download leaves nothing partial behind.
    """
    from squib.cli.actions.copying import Copy

    copy = Copy(output, user=user, keep_owner=keep_owner, unsafe_links=unsafe_links)
    *sources, target = paths
    async with options.connect() as engine:
        await copy.download(engine, vm, sources, target)
