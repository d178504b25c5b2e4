"""A runtime's root filesystem: a minimal Debian as a squashfs."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from squib.artifacts.building import Build
from squib.artifacts.mmdebstrap import bootstrap
from squib.errors import ToolFailed
from squib.host import proc
from squib.images.runtimes import Runtime
from squib.models import Progress

_DPKG_OPTIONS = (
    "force-unsafe-io",  # stays in the image: a VM's disk need not survive a power cut
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/locale/*",
    "path-include=/usr/share/locale/locale.alias",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/bug/*",
)

_NEUTRALISE = (
    'cd "$1/etc" && rm -f hostname resolv.conf machine-id'
    " && echo localhost >hostname && : >resolv.conf && : >machine-id"
    " && chmod 0644 hostname resolv.conf machine-id"
)
"""A hook that removes what mmdebstrap copied from the host. mmdebstrap runs it with the tree's path as ``$1``.

The files are removed first, so that nothing is written through a symbolic link. The agent sets each VM's own.
"""

_SQUASHFS_OPTIONS = (
    "-quiet",
    "-no-progress",
    # An emulated guest reads lz4 1.5 times as fast as zstd, at 1.5 times the size; -Xhc saves a sixth for 6 s more.
    *("-comp", "lz4"),
    # sqfstar ignores the tar's entry for the root directory and would make it writable for all.
    *("-root-mode", "755", "-root-uid", "0", "-root-gid", "0"),
)


async def build_rootfs(runtime: Runtime, build: Build, target: Path) -> None:
    """Build the squashfs of ``runtime`` at ``target``.

    A pipe connects mmdebstrap to sqfstar.

    Steps: ``bootstrap: …``, ``squashfs``.

    Raises `ToolFailed`, `DependencyMissing`.
    """
    proc.find_tool("sqfstar")  # before the long step
    read_end, write_end = os.pipe()
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_bootstrap(runtime, build, write_end))
            tasks.create_task(_squash(build, read_end, target))
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None  # the first to fail; the other followed from it


async def _bootstrap(runtime: Runtime, build: Build, output: int) -> None:
    try:
        await bootstrap(
            build,
            variant="minbase",
            include=runtime.packages,
            stdout=output,
            options=[*(f"--dpkgopt={option}" for option in _DPKG_OPTIONS), f"--customize-hook={_NEUTRALISE}"],
        )
    finally:
        os.close(output)
    build.report(Progress(step="squashfs"))


async def _squash(build: Build, tar: int, target: Path) -> None:
    try:
        await proc.run(
            ["sqfstar", *_SQUASHFS_OPTIONS, target],
            stdin=tar,
            cwd=build.folder,
            lock=build.lock,
        )
    finally:
        os.close(tar)  # so that mmdebstrap, if it still writes, gets an error
    if not target.exists():
        raise ToolFailed("sqfstar wrote no squashfs")
