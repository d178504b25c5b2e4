"""Debian packages, through ``mmdebstrap``: it knows where they come from and checks their signatures."""

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
)  # what mmdebstrap prints as "I: …", in this order; `--variant=extract` leaves out the two that install


async def bootstrap(
    build: Build, *, variant: str, include: Sequence[str], stdout: int, options: Sequence[str] = ()
) -> None:
    """Write a tar of the packages ``include`` (and, for ``minbase``, a small Debian around them) to ``stdout``.

    Reports the step ``bootstrap: <stage>``. Raises `ToolFailed`, `DependencyMissing`.
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
    """Root could work without namespaces, but a build that is killed would then leave its mounts behind."""
    if os.geteuid() != 0:
        proc.find_tool("newuidmap")  # mmdebstrap does not say that this is what it misses
        return "unshare"
    try:
        await proc.run(["unshare", "--mount", "--pid", "--fork", "true"], lock=build.lock)
    except ToolFailed:
        return "root"  # no right to unshare, and so none to mount either
    return "unshare"
