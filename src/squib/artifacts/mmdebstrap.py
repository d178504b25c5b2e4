"""Debian packages, through ``mmdebstrap``, which checks signatures."""

from __future__ import annotations

import os
from collections.abc import Sequence

from squib.artifacts.building import Build
from squib.errors import ToolFailed
from squib.host import proc
from squib.models import Progress

SUITE = "trixie"

_STAGES = (
    "running apt-get update",
    "downloading packages with apt",
    "extracting archives",
    "installing essential packages",
    "installing remaining packages inside the chroot",
    "cleaning package lists and apt cache",
    "creating tarball",
)
"""What mmdebstrap prints as ``I: …``, in this order. ``--variant=extract`` omits the two stages that install."""


async def bootstrap(
    build: Build, *, variant: str, include: Sequence[str], stdout: int, options: Sequence[str] = ()
) -> None:
    """Write a tar of packages to ``stdout``.

    With the variant ``minbase``, it is a minimal Debian with these packages. Step: ``bootstrap: <stage>``.

    Raises `ToolFailed`, `DependencyMissing`.
    """

    def show(line: str) -> None:
        stage = line.removeprefix("I: ").rstrip(".")
        if stage in _STAGES:
            done = _STAGES.index(stage)
            build.report(Progress(step=f"bootstrap: {stage}", done=done, total=len(_STAGES), unit="stages"))

    await proc.run(
        [
            "mmdebstrap",
            f"--mode={await _mode(build)}",
            f"--variant={variant}",
            f"--include={','.join(include)}",
            *options,
            SUITE,
            "-",
        ],
        stdout=stdout,
        cwd=build.folder,
        lock=build.lock,
        extra_env={"TMPDIR": str(build.scratch())},
        on_stderr_line=show,
    )


async def _mode(build: Build) -> str:
    """Choose the mode ``unshare`` where possible, else ``root``.

    Without namespaces, a killed build would leave its mounts.
    """
    if os.geteuid() != 0:
        proc.find_tool("newuidmap")  # mmdebstrap's own error does not name it
        return "unshare"
    try:
        await proc.run(["unshare", "--mount", "--pid", "--fork", "true"], lock=build.lock)
    except ToolFailed:
        return "root"  # a process that may not unshare may not mount either, so no mounts can be left
    return "unshare"
