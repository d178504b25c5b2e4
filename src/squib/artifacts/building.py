"""Build artifacts: one build at a time for each target, in its own directory.

A failed build leaves nothing.

A build has two locks. Only the builder holds the *build lock*, so the next builder waits for a living one. Every tool
that the build starts inherits the *tools lock*: if the builder is killed and its tools live on, the next builder finds
them by that lock, kills them, and then removes what they wrote.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from squib.errors import DiskFull, ToolFailed
from squib.host import files, proc, processes
from squib.host.locks import FileLock, locked
from squib.host.processes import ProcessIdentity
from squib.models import OnProgress, Progress
from squib.paths import Home

_SCRATCH_LINK = "scratch"
_SCRATCH_BYTES = 2 << 30
_MEMORY = Path("/dev/shm")
_PLENTY_OF_MEMORY_BYTES = 6 << 30
_FULL_DISK_BYTES = 1 << 20
_FULL_DISK_TEXTS = ("No space left on device", "Disk quota exceeded", "don't have enough free space")


def no_progress(_: Progress) -> None:
    """Ignore progress."""


@dataclass(frozen=True)
class Build:
    """A build in progress.

    Pass ``lock`` to every tool. ``folder`` is removed when the build ends.
    """

    folder: Path
    lock: FileLock
    report: OnProgress

    def scratch(self) -> Path:
        """Return the build's scratch directory for tools with other users.

        It is outside the state directory, which other users cannot enter. It is removed when the build ends.
        """
        link = self.folder / _SCRATCH_LINK
        if link.is_symlink():
            return link.readlink()
        scratch = _scratch_parent() / f"squib-build-{secrets.token_hex(8)}"
        link.symlink_to(scratch)  # first, so that the next builder finds the directory after a kill
        scratch.mkdir(mode=0o711)
        scratch.chmod(0o711)
        return scratch


@contextlib.asynccontextmanager
async def building(home: Home, what: str, on_progress: OnProgress = no_progress) -> AsyncIterator[Build]:
    """Build ``what`` (such as ``image-base``) in a new empty directory.

    Other builders of it wait, in all processes.

    The leftovers of a killed builder are removed first. At the end the directory is removed and tools that still run
    are killed. If a tool failed because the disk is full, `DiskFull` is raised.
    """
    _make_folders(home)
    async with _build_lock(home.build_lock(what), on_progress):
        await _clear(home, what)
        with FileLock(home.tools_lock(what)) as tools:
            tools.acquire()
            folder = home.building / f"{what}.{secrets.token_hex(8)}"
            try:
                with files.disk_errors(home.building):
                    folder.mkdir()
                    yield Build(folder, tools, on_progress)
            except ToolFailed as error:
                full = _full_directory(folder, error)
                if full is None:
                    raise
                raise _disk_full(full, error) from error
            finally:
                tools.close()
                await asyncio.shield(_clear(home, what))


async def sweep(home: Home) -> None:
    """Remove the leftovers of killed builds.

    Builds in progress are not touched.
    """
    if not home.building.exists():
        return
    _make_folders(home)
    for what in {_target_of(entry) for entry in home.building.iterdir()}:
        with FileLock(home.build_lock(what)) as lock:
            if lock.try_acquire():
                await _clear(home, what)


def _make_folders(home: Home) -> None:
    with files.disk_errors(home.root):
        home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (home.cache, home.building, home.locks):
            folder.mkdir(exist_ok=True)


@contextlib.asynccontextmanager
async def _build_lock(lock_path: Path, on_progress: OnProgress) -> AsyncIterator[None]:
    with FileLock(lock_path) as lock:
        if lock.try_acquire():
            yield
            return
    on_progress(Progress(step="waiting for another build"))
    async with locked(lock_path):
        yield


def _scratch_parent() -> Path:
    """Return ``$TMPDIR``, else memory if there is plenty, else ``/var/tmp``.

    Memory halves the time of a build.
    """
    if os.environ.get("TMPDIR"):
        return Path(tempfile.gettempdir())
    if _available_memory_bytes() >= _PLENTY_OF_MEMORY_BYTES and _is_roomy(_MEMORY):
        return _MEMORY
    return Path("/var/tmp")


def _is_roomy(place: Path) -> bool:
    try:
        found = os.statvfs(place)
    except FileNotFoundError:
        return False
    usable = os.access(place, os.W_OK) and not found.f_flag & os.ST_NOEXEC
    return usable and found.f_bavail * found.f_frsize >= _SCRATCH_BYTES


def _available_memory_bytes() -> int:
    """Return the free memory of the host, or of a container if less."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    available = int(found[1]) * 1024 if found else 0
    for limit in Path("/sys/fs/cgroup").glob("memory.max"):  # exists only inside a container
        if (most := limit.read_text().strip()) != "max":
            used = int(limit.with_name("memory.current").read_text())
            available = min(available, int(most) - used)
    return available


def _target_of(folder: Path) -> str:
    return folder.name.rpartition(".")[0]


async def _clear(home: Home, what: str) -> None:
    """Kill the tools of all builds of ``what`` and remove their directories.

    The caller holds the build lock.
    """
    await asyncio.to_thread(processes.kill, ProcessIdentity(home.tools_lock(what)))
    for folder in [entry for entry in home.building.iterdir() if _target_of(entry) == what]:
        link = folder / _SCRATCH_LINK
        if link.is_symlink():
            await _remove_scratch(link.readlink())
        await asyncio.to_thread(files.remove_tree, folder)


async def _remove_scratch(scratch: Path) -> None:
    try:
        await asyncio.to_thread(files.remove_tree, scratch)
    except PermissionError:
        # Without root, mmdebstrap runs as root of a user namespace, and its files belong to users of that namespace.
        with contextlib.suppress(ToolFailed):
            await proc.run(["mmdebstrap", "--unshare-helper", "find", scratch, "-mindepth", "1", "-delete"])
        await asyncio.to_thread(files.remove_tree, scratch)


def _full_directory(folder: Path, error: ToolFailed) -> Path | None:
    """Return the directory whose full disk made a tool fail, or ``None``.

    ``None`` means that the tool failed for another reason.
    """
    link = folder / _SCRATCH_LINK
    places = [folder, *([link.readlink()] if link.is_symlink() else [])]
    emptiest = min(places, key=lambda place: shutil.disk_usage(place).free)
    reported = any(text in error.detail for text in _FULL_DISK_TEXTS)
    return emptiest if reported or shutil.disk_usage(emptiest).free < _FULL_DISK_BYTES else None


def _disk_full(place: Path, error: ToolFailed) -> DiskFull:
    full = files.disk_full(place)
    return DiskFull(
        full.message, hint=full.hint, detail="\n".join(part for part in (error.message, error.detail) if part)
    )
