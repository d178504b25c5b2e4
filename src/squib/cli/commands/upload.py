"""``squib upload``."""

from __future__ import annotations

from typing import Annotated

import typer

from squib.cli.app import command
from squib.cli.args import options
from squib.cli.render import Output


@command(
    "upload",
    examples=[
        "squib upload web notes.txt /root/",
        "squib upload web a.py lib /srv/app",
        "squib upload --owner www-data --mode 0640 web site.conf /etc/nginx/site.conf",
        "squib upload web project/. /srv/app          # what is in project, not itself",
        "pg_dump shop | squib upload web - /var/tmp/shop.sql",
    ],
)
async def upload(
    output: Output,
    vm: options.Ref,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC... DST",
            help="Files and directories of this machine ('-': standard input), and an absolute path in the VM.",
            show_default=False,
        ),
    ],
    owner: options.Owner = None,
    mode: options.Mode = None,
    keep_owner: options.KeepOwner = False,
) -> None:
    """Copy files and directories into a VM that runs.

    If DST is a directory there, sources go into it under their names; else the one source becomes DST. Permission bits,
    times and links are kept; all belongs to root, but for --owner and --keep-owner. A file appears in one step, and so
    does a new directory: what breaks off, by Ctrl-C too, leaves nothing of it.
    """
    from squib.cli.actions.copying import Copy

    copy = Copy(output, owner=owner, mode=mode, keep_owner=keep_owner)
    *sources, target = paths
    async with options.connect() as engine:
        await copy.upload(engine, sources, vm, target)
