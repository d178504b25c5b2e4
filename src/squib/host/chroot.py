"""Prepare a chroot for a VMM that comes with a jailer of its own, and run that jailer.

The launcher (`squib.host.jailer`) joins the VMM's cgroup, enters a mount and a network namespace, makes the chroot on
a tmpfs there, and becomes the jailer. The chroot shares files of the host by bind mounts, so nothing is copied. Other
processes do not see it, and the kernel removes it when the last process in it has ended.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from pathlib import Path

from squib.errors import HostError
from squib.host import jail
from squib.host.locks import FileLock
from squib.host.processes import Process
from squib.undo import AsyncUndo

TIMEOUT_S = 20.0
"""How long a jailer may take. Firecracker's needs milliseconds."""


@dataclass(frozen=True)
class SharedFile:
    """A file of the host that the chroot shows as ``name``, in its top directory."""

    source: str
    name: str
    read_only: bool


@dataclass(frozen=True)
class ChrootPlan:
    """All that the launcher needs to know.

    ``root`` is the chroot, in the directory ``base``, which must exist. A tmpfs of ``size_mib`` is mounted on ``base``.
    ``cgroups`` are directories. ``argv`` is the jailer's command line.
    """

    program: str
    argv: tuple[str, ...]
    base: str
    root: str
    size_mib: int
    files: tuple[SharedFile, ...]
    cgroups: tuple[str, ...]
    mode: str = "chroot"


async def run(plan: ChrootPlan, *, lock: FileLock, log_path: Path, stdout_path: Path) -> Process:
    """Run the jailer; return its process when it has ended.

    Its errors, and those of the VMM that it starts, go to ``log_path``, and what they print to ``stdout_path``; both
    are named pipes. On an error or a cancellation the jailer is killed, but not the VMM that it may have started.

    Raises `HostError` if the chroot cannot be prepared, or if the jailer does not end.
    """
    launcher = await jail.start_launcher(asdict(plan), lock=lock, log_path=log_path, stdout_path=stdout_path)
    async with AsyncUndo(launcher.close):
        await launcher.wait_until_replaced()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await launcher.process.wait()
        except TimeoutError:
            name = Path(plan.program).name
            raise HostError(f"{name} did not start the VMM within {TIMEOUT_S:g} s") from None
    return launcher.process
