"""Finding the local engine of a state directory, and starting it on demand."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from squib.errors import EngineStartFailed, EngineUnavailable, SquibError
from squib.host import sockets
from squib.host.files import disk_errors
from squib.host.locks import locked
from squib.paths import Home
from squib.protocol.errors import from_wire
from squib.undo import Undo

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
_LOG_TAIL_BYTES = 2000


def engine_answers(home: Home) -> bool:
    """Return whether the engine of a state directory is listening.

    Raises `EngineStartFailed` if its socket belongs to another user.
    """
    try:
        return sockets.is_served(home.engine_socket)
    except PermissionError as error:
        raise EngineStartFailed(
            f"the engine's socket {home.engine_socket} belongs to another user",
            hint="set SQUIB_HOME to your own directory, or SQUIB_URL and SQUIB_TOKEN to use that engine",
        ) from error


@dataclass(frozen=True)
class EngineProcess:
    """The process of a local engine.

    It does not run while it ``is_stopped`` by a signal.
    """

    pid: int
    started_at: datetime
    is_stopped: bool


def find_engine(home: Home) -> EngineProcess | None:
    """Find the engine's process by its lock, whether or not it responds.

    It may just be starting or ending.
    """
    from squib.host import processes  # here, since most commands need neither this nor what it imports

    for pid in processes.holders(home.engine_lock):
        with suppress(ProcessLookupError):
            return EngineProcess(pid, processes.started_at(pid), processes.is_stopped(pid))
    return None


async def stop_engine(home: Home) -> int | None:
    """Stop the engine, wait until it has ended, and return its pid.

    Returns ``None`` if no engine runs. VMs keep running. A process that a signal has stopped is continued, so that it
    can end.

    Raises `EngineUnavailable` if the process does not end within 10 s.
    """
    from squib.host import processes

    for pid in processes.holders(home.engine_lock):
        with suppress(ProcessLookupError):
            if not await asyncio.to_thread(processes.terminate, pid, home.engine_lock, timeout_s=STOP_TIMEOUT_S):
                raise EngineUnavailable(
                    f"the engine {home.root} did not end within {STOP_TIMEOUT_S:g} s: its process {pid} hangs",
                    hint=f"kill -9 {pid}   (if VMs run, another engine is started at once and adopts them)",
                )
            return pid
    return None


@asynccontextmanager
async def make_exclusive(home: Home) -> AsyncIterator[None]:
    """Stop the engine, and keep any other from starting until the block ends.

    The state directory must exist. Its locks may be removed in the block.

    Raises `EngineUnavailable` if the engine does not end, or another process holds a lock.
    """
    async with AsyncExitStack() as held:
        try:
            await held.enter_async_context(locked(home.start_lock, timeout_s=START_TIMEOUT_S))
            await stop_engine(home)
            await held.enter_async_context(locked(home.engine_lock, timeout_s=STOP_TIMEOUT_S))
        except TimeoutError:
            raise EngineUnavailable(
                f"another process uses {home.root}", hint=f"find it with: fuser {home.start_lock} {home.engine_lock}"
            ) from None
        yield


def describe_silence(home: Home) -> tuple[str, str]:
    """Return why an engine does not respond, and a hint for the user."""
    found = find_engine(home)
    if found is None:
        return "no process of it is found", f"see its log: {home.engine_log}"
    if found.is_stopped:
        return (
            f"its process {found.pid} is stopped",
            f"let it go on: kill -CONT {found.pid}   (its log: {home.engine_log})",
        )
    return (
        f"its process {found.pid} is busy or hangs",
        f"see its log: {home.engine_log}; squib engine stop --force ends it, and its VMs go on",
    )


def make_state_directory(home: Home) -> None:
    """Create the state directory if it is missing.

    Raises `EngineStartFailed`, `DiskFull`.
    """
    try:
        with disk_errors(home.root):
            home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except SquibError:
        raise
    except OSError as error:
        raise EngineStartFailed(
            f"the state directory {home.root} cannot be created: {error.strerror}",
            hint="set SQUIB_HOME to a writable directory",
        ) from error


async def ensure_engine(home: Home) -> None:
    """Start the engine of a state directory if it is not listening.

    Returns when the engine is listening. Of several concurrent callers, one starts it and the others wait.

    Raises `EngineStartFailed`, `DiskFull`, and the error that the engine reports.
    """
    if engine_answers(home):
        return
    make_state_directory(home)
    try:
        with disk_errors(home.root):
            async with locked(home.start_lock, timeout_s=START_TIMEOUT_S):
                if not engine_answers(home):
                    await _start_engine(home)
    except SquibError:
        raise
    except TimeoutError:
        raise EngineStartFailed(
            f"another process has been starting the engine of {home.root} for {START_TIMEOUT_S:g} s",
            hint=f"it may be suspended; find it with: fuser {home.start_lock}",
        ) from None
    except OSError as error:
        raise EngineStartFailed(
            f"the engine of {home.root} cannot be started: {error.strerror}",
            hint="set SQUIB_HOME to a writable directory",
        ) from error


async def _start_engine(home: Home) -> None:
    from squib.host import proc

    read_fd, write_fd = os.pipe()
    try:
        with Undo(lambda: os.close(read_fd)):
            argv = [sys.executable, "-P", "-m", "squib.api.daemon", str(home.root), "--ready-fd", str(write_fd)]
            proc.spawn_daemon(argv, log_path=home.engine_log, pass_fds=(write_fd,))
    finally:
        os.close(write_fd)
    answer = await _read_all(read_fd)
    if answer is None:
        raise EngineStartFailed(
            f"the engine did not start within {START_TIMEOUT_S:g} s", hint=f"see the log {home.engine_log}"
        )
    verdict = _verdict(answer)
    if verdict is None:
        raise EngineStartFailed(
            "the engine exited before it was ready", detail=_tail(home.engine_log), hint=f"see {home.engine_log}"
        )
    if error := verdict.get("error"):
        raise from_wire(error)


def _verdict(answer: bytes) -> dict[str, Any] | None:
    """Parse the engine's startup report; ``None`` if it is incomplete."""
    with suppress(ValueError):
        verdict = json.loads(answer)
        return verdict if isinstance(verdict, dict) else None
    return None


async def _read_all(fd: int) -> bytes | None:
    """Read a pipe to its end, or return ``None`` after `START_TIMEOUT_S`."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", buffering=0)
    )
    try:
        return await asyncio.wait_for(reader.read(), START_TIMEOUT_S)
    except TimeoutError:
        return None
    finally:
        transport.close()


def _tail(path: Path) -> str:
    try:
        return path.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
    except OSError:
        return ""
