"""``squib cp``."""

from __future__ import annotations

from typing import Annotated

import typer

from squib.cli.app import command
from squib.cli.args import options
from squib.cli.render import Output


@command(
    "cp",
    examples=[
        "squib cp notes.txt web:/root/",
        "squib cp web:/var/log/syslog web:/etc/hosts .",
        "squib cp -a web:/srv/app db:/srv/           # from one VM to another",
        "squib cp ./odd:name web:/tmp/               # a colon after a slash is part of the name",
    ],
)
async def cp(
    output: Output,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC... DST",
            help="VM:PATH is a path in a VM. Anything else is a local path; '-' is standard input or output.",
            show_default=False,
        ),
    ],
    owner: options.Owner = None,
    mode: options.Mode = None,
    keep_owner: options.KeepOwner = False,
    no_parents: options.NoParents = False,
    unsafe_links: options.UnsafeLinks = False,
    user: options.FilesUser = None,
) -> None:
    """Copy files between this machine and VMs, or from VM to VM.

    This works like squib upload and squib download; see their help for details. --owner and --mode apply to copies into
    a VM, --unsafe-links to copies from a VM to this machine.
    """
    from squib.cli.actions.copying import Copy

    copy = Copy(
        output,
        user=user,
        parents=not no_parents,
        owner=owner,
        mode=mode,
        keep_owner=keep_owner,
        unsafe_links=unsafe_links,
    )
    await copy.between(paths)
