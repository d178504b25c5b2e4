"""``squib uninstall --all``: remove the state directory.

Only what squib made is removed, by name. Other files are kept. Symbolic links are removed, and their targets are kept.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from squib.drivers.firecracker import installed
from squib.errors import Conflict
from squib.host import files, logs
from squib.host.locks import FileLock
from squib.paths import Home, SavedPaths

_BLOCK_BYTES = 512  # the unit of st_blocks


@dataclass(frozen=True)
class Item:
    """A file or directory to remove.

    ``size_bytes`` is the space that it takes on the disk. ``note`` is empty or says what is special.
    """

    path: Path
    size_bytes: int
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """What is removed, and what is kept because squib did not make it."""

    items: tuple[Item, ...]
    kept: tuple[Path, ...]

    @property
    def size_bytes(self) -> int:
        return sum(item.size_bytes for item in self.items)


def vm_directories(home: Home) -> list[str]:
    """Return the IDs of the VMs that have a disk."""
    return [path.name for path in _entries(home.vms) if home.vm(path.name).overlay.exists()]


def snapshot_directories(home: Home) -> list[str]:
    """Return the IDs of the snapshots."""
    return [path.name for path in _entries(home.snapshots) if SavedPaths(path).manifest.exists()]


def plan_removal(home: Home) -> Plan:
    """List what to remove from a state directory.

    Nothing is changed. Locks come last, because they are held until then.
    """
    items: list[Item] = []
    kept: list[Path] = []
    locks: list[Item] = []
    folders = {
        home.bin: installed.own_paths(home),
        home.cache: list(home.cache_folders),
        home.vms: _entries(home.vms),
        home.snapshots: _entries(home.snapshots),
    }
    for path in _entries(home.root):
        if path.is_symlink() and (path in folders or _is_own_file(home, path)):
            items.append(Item(path, 0, f"only the link; it leads to {path.readlink()}"))
        elif path in folders and path.is_dir():
            unknown = [entry for entry in _entries(path) if entry not in folders[path]]
            kept += unknown
            whole = [path] if not unknown else [entry for entry in _entries(path) if entry in folders[path]]
            items += map(_item, whole)
        elif path in (home.engine_lock, home.start_lock):
            locks.append(_item(path))
        elif _is_own_file(home, path):
            items.append(_item(path))
        else:
            kept.append(path)
    return Plan((*items, *locks), tuple(kept))


def remove_all(home: Home) -> Plan:
    """Remove what `plan_removal` lists now, and the state directory if nothing is left in it.

    The caller has removed all VMs, and holds the lock of the engine. Returns what was removed.

    Raises `Conflict`, before anything is removed, if there is a VM, or if an install is in progress.
    """
    if left := vm_directories(home):
        raise Conflict(f"nothing was removed: VMs exist: {', '.join(left)}", hint="squib ls")
    if left := snapshot_directories(home):
        raise Conflict(f"nothing was removed: snapshots exist: {', '.join(left)}", hint="squib snapshot ls")
    with contextlib.ExitStack() as held:
        install_lock = home.build_lock(installed.LOCK)
        if install_lock.exists():
            lock = held.enter_context(FileLock(install_lock))
            if not lock.try_acquire():
                raise Conflict("nothing was removed: squib install is in progress", hint="wait until it has finished")
        plan = plan_removal(home)
        for item in plan.items:
            files.remove_tree(item.path)
        with contextlib.suppress(OSError):  # a file is kept in it, or it is a link
            home.root.rmdir()
    return plan


def _is_own_file(home: Home, path: Path) -> bool:
    if path.is_dir() and not path.is_symlink():
        return False
    own = (home.engine_lock, home.start_lock, home.engine_socket, home.engine_log, home.database, home.token)
    database = tuple(f"{home.database.name}{mark}" for mark in ".-")  # copies, and SQLite's files beside it
    unfinished = f".{home.token.name}."
    return path in (*own, logs.rotated(home.engine_log)) or path.name.startswith((*database, unfinished))


def _item(path: Path) -> Item:
    return Item(path, sum(_sizes(path)))


def _sizes(path: Path) -> Iterator[int]:
    """Yield the size of each file below ``path``. Links are not followed."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    yield found.st_blocks * _BLOCK_BYTES
    if stat.S_ISDIR(found.st_mode):
        for entry in _entries(path):
            yield from _sizes(entry)


def _entries(folder: Path) -> list[Path]:
    """Return the entries of a directory. The list is empty if there is no directory at this path."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
