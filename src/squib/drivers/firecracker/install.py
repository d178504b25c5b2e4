"""Install Firecracker and its jailer below the state directory.

This needs no engine. `squib.drivers.firecracker.installed` says how the programs are kept.
"""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from squib.artifacts.building import Build, building, no_progress
from squib.artifacts.download import download
from squib.drivers.firecracker import installed
from squib.drivers.firecracker.archive import MAX_ARCHIVE_BYTES, check_elf, collect, unpack
from squib.drivers.firecracker.installed import Installed, Record
from squib.drivers.firecracker.releases import (
    DEFAULT_URL,
    archive_name,
    archive_url,
    check_architecture,
    choose_digest,
    choose_version,
    parse_digest,
)
from squib.drivers.firecracker.version import Version, check_supported, parse_version, show_version
from squib.errors import DownloadFailed, HostError, InvalidArgument, SquibError, ToolFailed
from squib.host import files, proc
from squib.host.locks import FileLock
from squib.models import OnProgress, Progress
from squib.paths import FirecrackerRelease, Home

T = TypeVar("T")

_RUN_TIMEOUT_S = 10.0
_OFFLINE_HINT = "without internet, get the archive another way: squib install firecracker --from FILE"
_ANNOUNCED = {"firecracker": "Firecracker v", "jailer": "Jailer v"}
"""How the output of ``--version`` of each program begins."""


@dataclass(frozen=True)
class Outcome:
    """What is installed now; ``changed`` is false if it was installed before."""

    installed: Installed
    changed: bool


async def install_release(
    home: Home,
    version: str | None = None,
    *,
    sha256: str | None = None,
    base_url: str = DEFAULT_URL,
    on_progress: OnProgress = no_progress,
) -> Outcome:
    """Download a release of Firecracker and install it.

    ``version`` defaults to `releases.DEFAULT_VERSION`. ``sha256`` is the hex digest of its archive; a version whose
    digest squib does not know needs it. Nothing is downloaded if that archive is installed and its programs are intact.

    Raises `DownloadFailed`, `InvalidArgument`, `Unsupported`, `DiskFull`, `HostError`, `ToolFailed`.
    """
    check_architecture(platform.machine())
    chosen = choose_version(version)
    digest = choose_digest(chosen, sha256)
    async with building(home, installed.LOCK, on_progress) as build:
        current = await _in_thread(lambda: installed.find_intact(home))
        if current and current.record.archive_sha256 == digest:
            return Outcome(current, changed=False)
        archive = build.folder / archive_name(chosen)
        url = archive_url(chosen, base_url)
        try:
            await download(url, archive, sha256=digest, max_bytes=MAX_ARCHIVE_BYTES, on_progress=on_progress)
        except DownloadFailed as error:
            raise DownloadFailed(error.message, hint=_OFFLINE_HINT, detail=error.detail) from error
        try:
            return await _install_archive(home, build, archive, digest, chosen)
        except InvalidArgument as error:  # the file is not the user's argument
            raise DownloadFailed(f"{url}: {error.message}", hint=_OFFLINE_HINT, detail=error.detail) from error


async def install_from(
    home: Home,
    source: Path,
    version: str | None = None,
    *,
    sha256: str | None = None,
    on_progress: OnProgress = no_progress,
) -> Outcome:
    """Install Firecracker from a release archive, or a directory.

    The directory contains ``firecracker`` and ``jailer``, also under their names in a release. ``sha256`` is the hex
    digest that the archive must have; without it the user vouches for the programs. With ``version``, they must have
    that version.

    Raises `InvalidArgument`, `Unsupported`, `DiskFull`, `HostError`, `ToolFailed`.
    """
    check_architecture(platform.machine())
    chosen = None if version is None else choose_version(version)
    wanted = None if sha256 is None else parse_digest(sha256)
    with _unreadable(source):
        is_folder = source.is_dir()
    if is_folder and wanted:
        raise InvalidArgument("--sha256 is the digest of an archive, but --from names a directory")
    async with building(home, installed.LOCK, on_progress) as build:
        with _unreadable(source):
            if is_folder:
                return await _install(home, build, lambda release: collect(source, release), None, chosen)
            archive = build.folder / "archive.tgz"
            digest = await _in_thread(lambda: _copy_archive(source, archive))
        if wanted not in (None, digest):
            raise InvalidArgument(f"the SHA-256 of {source} is {digest}, not {wanted}")
        return await _install_archive(home, build, archive, digest, chosen)


async def uninstall(home: Home) -> bool:
    """Remove the installed Firecracker; return whether there was one.

    VMMs that run continue: each has its own copy.
    """
    if not installed.own_paths(home):
        return False
    async with building(home, installed.LOCK):
        return await _in_thread(lambda: installed.remove(home))


async def _install_archive(home: Home, build: Build, archive: Path, digest: str, version: Version | None) -> Outcome:
    def fill(release: FirecrackerRelease) -> None:
        unpack(archive, release, build.folder / "archive.tar")

    return await _install(home, build, fill, digest, version)


async def _install(
    home: Home,
    build: Build,
    fill: Callable[[FirecrackerRelease], None],
    archive_sha256: str | None,
    wanted: Version | None,
) -> Outcome:
    """Fill a new directory, check its programs, and make it the installed one."""
    build.report(Progress(step="check"))
    async with _new_directory(home) as release:
        await _in_thread(lambda: fill(release))
        version = await _check_programs(release, build.lock, wanted)
        digests = await _in_thread(lambda: installed.digests(release))
        record = Record(version=show_version(version), archive_sha256=archive_sha256, files=digests)
        current = await _in_thread(lambda: installed.find_intact(home))
        if current and current.record == record:
            return Outcome(current, changed=False)
        activated = await _in_thread(lambda: installed.activate(home, release, record, version))
        return Outcome(Installed(activated, record), changed=True)


@asynccontextmanager
async def _new_directory(home: Home) -> AsyncIterator[FirecrackerRelease]:
    """Make a directory for a release.

    At the end, all releases but the active one are removed.
    """
    with files.disk_errors(home.root):
        release = installed.make_unfinished(home)
        try:
            yield release
        finally:
            installed.remove_leftovers(home)


async def _check_programs(release: FirecrackerRelease, lock: FileLock, wanted: Version | None) -> Version:
    """Run both programs, and return their version.

    Raises `InvalidArgument` if they are not two programs of one release, or not of the version ``wanted``.
    """
    for path in (release.vmm, release.jailer):
        check_elf(path)
        if not os.access(path, os.X_OK):
            raise HostError(
                f"programs in {release.root.parent} cannot be executed: is its disk mounted with noexec?",
                hint="SQUIB_HOME selects a directory on another disk",
            )
    version = await _ask_version(release.vmm, lock)
    jailer_version = await _ask_version(release.jailer, lock)
    if version != jailer_version:
        shown = f"firecracker is {show_version(version)}, jailer is {show_version(jailer_version)}"
        raise InvalidArgument(f"the two programs are of different releases: {shown}")
    if wanted is not None and version != wanted:
        raise InvalidArgument(f"this is Firecracker {show_version(version)}, not {show_version(wanted)}")
    check_supported(version)
    return version


async def _ask_version(program: Path, lock: FileLock) -> Version:
    try:
        done = await proc.run([program, "--version"], cwd=program.parent, timeout_s=_RUN_TIMEOUT_S, lock=lock)
    except ToolFailed as error:
        raise InvalidArgument(f"{program.name} --version failed: {error.message}", detail=error.detail) from error
    except OSError as error:
        raise InvalidArgument(f"{program.name} does not run on this host: {error.strerror}") from error
    output = done.stdout[:1000].decode(errors="replace")
    if not output.startswith(_ANNOUNCED[program.name]):
        raise InvalidArgument(f"this is not Firecracker's {program.name}: --version printed {output[:100]!r}")
    return parse_version(output)


def _copy_archive(source: Path, target: Path) -> str:
    """Copy an archive, so that what is unpacked is what was hashed.

    Returns its hex SHA-256.
    """
    with files.open_regular(source) as file:
        if os.fstat(file.fileno()).st_size > MAX_ARCHIVE_BYTES:
            raise InvalidArgument(f"{source} is too large: more than {MAX_ARCHIVE_BYTES >> 20} MiB")
        target.write_bytes(file.read(MAX_ARCHIVE_BYTES))
    return files.sha256(target).removeprefix("sha256:")


@contextmanager
def _unreadable(source: Path) -> Iterator[None]:
    """Convert an error while ``source`` is read into `InvalidArgument`."""
    try:
        yield
    except SquibError:
        raise
    except OSError as error:
        if not isinstance(error.filename, str) or not Path(error.filename).is_relative_to(source):
            raise
        raise InvalidArgument(f"{error.filename} cannot be read: {error.strerror}") from error


async def _in_thread(work: Callable[[], T]) -> T:
    """Run ``work`` in a thread, and wait for its end even if cancelled."""
    task = asyncio.create_task(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
