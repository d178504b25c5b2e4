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
        "squib upload web project/. /srv/app          # the contents of project",
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
            help="Local files and directories, or '-' for standard input; then a path in the VM.",
            show_default=False,
        ),
    ],
    owner: options.Owner = None,
    mode: options.Mode = None,
    keep_owner: options.KeepOwner = False,
    no_parents: options.NoParents = False,
    user: options.FilesUser = None,
) -> None:
    """Copy files and directories into a running VM.

    If DST is a directory, the sources are copied into it; otherwise the single source is copied to DST itself.
    Permission bits, times and links are kept. The owner is --user unless --owner or --keep-owner is given. Each file,
    and each new directory, appears only when it is complete: an interrupted upload leaves nothing partial behind. A
    relative DST begins in the VM's working directory, by default the user's home. Missing parents of DST are created.
    """
    from squib.cli.actions.copying import Copy

    copy = Copy(output, user=user, parents=not no_parents, owner=owner, mode=mode, keep_owner=keep_owner)
    *sources, target = paths
    async with options.connect() as engine:
        await copy.upload(engine, sources, vm, target)
