"""``squib install``: install Firecracker and its jailer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from squib.cli.actions.host import check_program, local_home
from squib.cli.app import command
from squib.cli.render import Output

if TYPE_CHECKING:
    from squib.drivers.firecracker.install import Outcome
    from squib.paths import Home


@command(
    "install",
    examples=[
        "squib install firecracker",
        "squib install firecracker --version 1.15.1",
        "squib install firecracker --from firecracker-v1.16.1-x86_64.tgz",
    ],
)
async def install(
    output: Output,
    program: Annotated[str, typer.Argument(metavar="firecracker", help="Program to install.", show_default=False)],
    version: Annotated[
        str | None, typer.Option("--version", metavar="X.Y.Z", help="Version to install. Default: 1.16.1.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FILE|DIR",
            help="Install from this release archive (.tgz), or from a directory with firecracker and jailer. "
            "Nothing is downloaded.",
        ),
    ] = None,
    sha256: Annotated[
        str | None,
        typer.Option(
            metavar="HEX", help="SHA-256 of the archive. Needed to download a version whose digest squib does not know."
        ),
    ] = None,
) -> None:
    """Install Firecracker and its jailer below the state directory.

    The release is downloaded from Firecracker's project on GitHub, or from the mirror $SQUIB_FIRECRACKER_URL, and
    checked against the SHA-256 that squib knows. Nothing happens if it is installed already.
    """
    from squib.cli.progress import late_steps
    from squib.drivers.firecracker.install import install_from, install_release
    from squib.drivers.firecracker.releases import DEFAULT_URL, URL_VARIABLE

    check_program(program)
    home = await local_home("squib install")
    async with late_steps(output, "firecracker", first="connecting") as report:
        if source is not None:
            outcome = await install_from(home, Path(source), version, sha256=sha256, on_progress=report)
        else:
            base_url = os.environ.get(URL_VARIABLE) or DEFAULT_URL
            outcome = await install_release(home, version, sha256=sha256, base_url=base_url, on_progress=report)
    _show(output, home, outcome)


def _show(output: Output, home: Home, outcome: Outcome) -> None:
    record = outcome.installed.record
    if output.json:
        output.data(
            {
                "program": "firecracker",
                "version": record.version,
                "path": str(home.firecracker),
                "archive_sha256": record.archive_sha256,
                "files": record.files,
                "changed": outcome.changed,
            }
        )
        return
    done = "installed" if outcome.changed else "already installed:"
    output.line(f"{done} Firecracker {record.version} in {home.firecracker}")
    if record.archive_sha256:
        output.line(f"sha256 {record.archive_sha256}  the archive")
    for name, digest in record.files.items():
        output.line(f"sha256 {digest}  {name}")
