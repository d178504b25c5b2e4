"""Become a state directory's engine: lock it, settle what is left in it."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import time
from collections.abc import AsyncIterator
from pathlib import Path

from squib.core.engine import Engine
from squib.core.reconcile import reconcile
from squib.core.upgrade import upgrade_files
from squib.drivers.registry import Drivers
from squib.errors import EngineStartFailed
from squib.guest.agent import AGENT_BINARY
from squib.host import sockets
from squib.host.files import disk_errors
from squib.host.locks import FileLock
from squib.paths import Home

_LOCK_TIMEOUT_S = 10.0


@contextlib.asynccontextmanager
async def open_engine(home: Home, drivers: Drivers, agent_binary: Path = AGENT_BINARY) -> AsyncIterator[Engine]:
    """Open the engine of a state directory until the block ends.

    First settle what a former engine left.

    Raises `EngineStartFailed` if another engine uses the directory, or it cannot be used; `DiskFull`.
    """
    _make_home(home)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a VMM's core dump would hold the guest's memory
    with FileLock(home.engine_lock) as lock:
        await _acquire(lock, home.engine_socket)
        engine = Engine(home, drivers, agent_binary)
        try:
            upgrade_files(home)
            await reconcile(engine)
            yield engine
        finally:
            await engine.close()


def _make_home(home: Home) -> None:
    folders = (home.vms, home.snapshots, *home.cache_folders)
    try:
        with disk_errors(home.root):
            home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            home.root.chmod(0o700)
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise EngineStartFailed(
            f"the state directory {home.root} cannot be used: {error.strerror}",
            hint="set SQUIB_HOME to a directory that this user can write to",
        ) from error
    for file in (home.engine_lock, home.engine_socket):
        if file.is_dir():
            raise EngineStartFailed(f"{file} is a directory, not a file of squib's", hint=f"remove it: rmdir {file}")


async def _acquire(lock: FileLock, engine_socket: Path) -> None:
    """Take the engine's lock.

    Wait for an engine that has closed its socket: it is about to release the lock.
    """
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while not lock.try_acquire():
        if sockets.is_served(engine_socket) or time.monotonic() > deadline:
            raise EngineStartFailed(
                f"another engine uses {lock.path.parent}",
                hint="squib version shows it; for a second engine, set SQUIB_HOME to another directory",
            )
        await asyncio.sleep(0.02)
    if lock.is_removed():
        raise EngineStartFailed(
            f"the state directory {lock.path.parent} was removed while the engine started", hint="start it again"
        )
