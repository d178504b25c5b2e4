"""Single files that can be built again: initramfs archives, empty overlays.

The record ``<name>.record`` in the same directory has the file's digest and its stamp. A file that does not match its
record is built again. File and directory are flushed to the disk before the record is written, so a power cut leaves no
record of a file that is not whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

from pydantic import ValidationError

from squib.artifacts.building import Build, building, no_progress
from squib.artifacts.stamp import Stamp
from squib.errors import DiskFull
from squib.host import files
from squib.models import OnProgress, StoredModel
from squib.paths import Home

log = logging.getLogger("squib.cache")


class FileRecord(StoredModel):
    """What a file was when it was built.

    ``digest`` is its `squib.host.files.sparse_sha256`.
    """

    name: str
    digest: str
    stamp: Stamp


async def build_file(
    home: Home,
    what: str,
    target: Path,
    make: Callable[[Build, Path], Awaitable[None]],
    on_progress: OnProgress = no_progress,
) -> Path:
    """Return ``target``, built if it is absent or does not match its record.

    Its mode is 0444.

    ``make`` gets the build and the path to write. ``what`` names the build, as in `squib.artifacts.building.building`.

    Raises `DiskFull` and what ``make`` raises.
    """
    if await asyncio.to_thread(find_damage, target) is None:
        return target
    async with building(home, what, on_progress) as build:
        damage = await asyncio.to_thread(find_damage, target)
        if damage is not None:
            if os.path.lexists(target):
                log.warning("%s is built again: %s", target, damage)
            partial = build.folder / target.name
            await make(build, partial)
            await asyncio.to_thread(_install, partial, target)
    return target


def find_damage(path: Path) -> str | None:
    """Say why a file cannot be used; ``None`` if it matches its record.

    The file is hashed only if its stamp has changed. If the content is the same, the new stamp is recorded.
    """
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return "it is not a regular file"
        stamp = Stamp.of(path)
        with files.open_regular(record_path(path)) as file:
            record = FileRecord.model_validate_json(file.read())
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    except OSError as error:
        return f"{error.filename} cannot be read: {error.strerror}"
    except ValidationError:
        return f"{record_path(path)} is damaged"
    if record.name != path.name:
        return f"{record_path(path)} describes {record.name}"
    if record.stamp == stamp:
        return None
    return _rehash(path, record, stamp)


def record_path(path: Path) -> Path:
    """Return the path of a file's record."""
    return path.with_name(f"{path.name}.record")


def remove_file(path: Path) -> None:
    """Remove a file and its record, if they exist."""
    files.remove_tree(record_path(path))
    files.remove_tree(path)


def _rehash(path: Path, record: FileRecord, stamp: Stamp) -> str | None:
    if stamp.size != record.stamp.size:
        return f"it has {stamp.size} bytes instead of {record.stamp.size}"
    try:
        digest = files.sparse_sha256(path)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    if digest != record.digest:
        return "its content has changed"
    with contextlib.suppress(OSError, DiskFull):  # then the next use hashes it again
        _write_record(path, FileRecord(name=path.name, digest=digest, stamp=stamp))
    return None


def _install(partial: Path, target: Path) -> None:
    partial.chmod(0o444)
    files.sync(partial)
    digest = files.sparse_sha256(partial)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir() and not target.is_symlink():
        files.remove_tree(target)
    partial.replace(target)
    files.sync(target.parent)
    files.remove_tree(record_path(target))
    _write_record(target, FileRecord(name=target.name, digest=digest, stamp=Stamp.of(target)))


def _write_record(path: Path, record: FileRecord) -> None:
    files.write_atomic(record_path(path), record.model_dump_json().encode())
