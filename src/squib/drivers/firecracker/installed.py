"""The installed Firecracker: two programs that change together.

::

    $SQUIB_HOME/bin/firecracker                            a link to the directory below
    $SQUIB_HOME/bin/firecracker-v1.16.1-5f0c…/firecracker  the programs, and a record of what they are
    $SQUIB_HOME/bin/firecracker-v1.16.1-5f0c…/jailer
    $SQUIB_HOME/bin/firecracker-v1.16.1-5f0c…/release.json

A directory is written, checked and flushed to the disk under another name. Then one rename replaces the link, and the
directory never changes afterwards. So a kill, a full disk or a power cut at any moment leaves the old pair or the new
one, and code that resolves the link once gets two programs of one release. Other directories are leftovers: the next
install, uninstall or engine removes them.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from squib.drivers.firecracker.version import Version, parse_version, show_version
from squib.errors import InvalidArgument
from squib.host import files
from squib.host.locks import FileLock
from squib.models import StoredModel
from squib.paths import FirecrackerRelease, Home

LOCK = "firecracker"
"""The name of the build lock that is held while anything here changes."""

_PREFIX = "firecracker-"
_UNFINISHED = ".firecracker-"


class Record(StoredModel):
    """What was installed.

    ``files`` has the hex SHA-256 of each program. ``archive_sha256`` is the archive's, ``None`` for a directory.
    """

    version: str
    archive_sha256: str | None
    files: dict[str, str]


@dataclass(frozen=True)
class Installed:
    """An installed release and its record."""

    release: FirecrackerRelease
    record: Record


def find_release(home: Home) -> FirecrackerRelease | None:
    """Return the directory of the installed Firecracker, or ``None``.

    The link is resolved, so both programs are of one release even if another is installed meanwhile.
    """
    release = FirecrackerRelease(home.firecracker.resolve())
    return release if release.vmm.is_file() and release.jailer.is_file() else None


def find_intact(home: Home) -> Installed | None:
    """Return the installed release if its programs match their record."""
    release = find_release(home)
    if release is None:
        return None
    try:
        record = Record.model_validate_json(release.record.read_bytes())
        intact = record.files == digests(release)
    except (OSError, ValidationError):
        return None
    return Installed(release, record) if intact else None


def recorded_version(release: FirecrackerRelease) -> Version | None:
    """Return the version of a release that squib has installed."""
    try:
        return parse_version(Record.model_validate_json(release.record.read_bytes()).version)
    except (OSError, ValidationError, InvalidArgument):
        return None


def changed_programs(release: FirecrackerRelease) -> list[str]:
    """Return the programs that differ from their record.

    Programs that squib did not install have no record, and count as unchanged.
    """
    try:
        record = Record.model_validate_json(release.record.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValidationError):
        return [release.record.name]
    try:
        found = digests(release)
    except OSError as error:
        return [Path(str(error.filename)).name]
    return [name for name, digest in found.items() if record.files.get(name) != digest]


def digests(release: FirecrackerRelease) -> dict[str, str]:
    """Return the hex SHA-256 of both programs."""
    return {path.name: files.sha256(path).removeprefix("sha256:") for path in (release.vmm, release.jailer)}


def make_unfinished(home: Home) -> FirecrackerRelease:
    """Make an empty directory for a release that is not installed yet."""
    home.bin.mkdir(exist_ok=True)
    folder = home.bin / f"{_UNFINISHED}{secrets.token_hex(8)}"
    folder.mkdir()
    return FirecrackerRelease(folder)


def activate(home: Home, unfinished: FirecrackerRelease, record: Record, version: Version) -> FirecrackerRelease:
    """Make a complete release the installed one, in one step.

    The caller holds the lock. It removes the others with `remove_leftovers`.
    """
    files.write_atomic(unfinished.record, record.model_dump_json(indent=2).encode(), mode=0o644)
    for path in (unfinished.vmm, unfinished.jailer, unfinished.root):
        files.sync(path)
    name = f"{_PREFIX}v{show_version(version)}-{unfinished.root.name.removeprefix(_UNFINISHED)}"
    release = FirecrackerRelease(unfinished.root.rename(home.bin / name))
    link = home.bin / f"{_UNFINISHED}link"
    link.unlink(missing_ok=True)
    link.symlink_to(name)
    files.sync(home.bin)
    link.replace(home.firecracker)
    files.sync(home.bin)
    return release


def remove(home: Home) -> bool:
    """Remove the installed release, and all leftovers.

    Returns whether there was one. The caller holds the lock.
    """
    was_there = os.path.lexists(home.firecracker)
    home.firecracker.unlink(missing_ok=True)
    remove_leftovers(home)
    return was_there


def remove_leftovers(home: Home) -> None:
    """Remove every release but the installed one. The caller holds the lock."""
    for path in _leftovers(home):
        files.remove_tree(path)


def own_paths(home: Home) -> list[Path]:
    """Return the paths in the directory of installed programs that squib made."""
    try:
        found = sorted(home.bin.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [path for path in found if path == home.firecracker or path.name.startswith((_PREFIX, _UNFINISHED))]


def sweep(home: Home) -> None:
    """Remove what a killed install left, unless an install is in progress."""
    if not _leftovers(home):
        return
    home.locks.mkdir(parents=True, exist_ok=True)
    with FileLock(home.build_lock(LOCK)) as lock:
        if lock.try_acquire():
            remove_leftovers(home)


def _leftovers(home: Home) -> list[Path]:
    try:
        kept = home.firecracker.readlink()
    except OSError:  # no link: nothing is installed
        kept = None
    return [path for path in own_paths(home) if path != home.firecracker and Path(path.name) != kept]
