"""Finding the engine of a state directory, and starting one if none runs."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from squib.errors import EngineStartFailed, from_wire
from squib.host import proc, sockets
from squib.host.files import disk_errors
from squib.host.locks import locked
from squib.paths import Home

START_TIMEOUT_S = 30.0
_LOG_TAIL_BYTES = 2000


def engine_answers(home: Home) -> bool:
    """Whether an engine listens for this state directory."""
    try:
        return sockets.is_served(home.engine_socket)
    except PermissionError as error:
        raise EngineStartFailed(
            f"the engine's socket {home.engine_socket} belongs to another user",
            hint="set SQUIB_HOME to a directory of your own, or use the engine by SQUIB_URL and SQUIB_TOKEN",
        ) from error


def make_state_directory(home: Home) -> None:
    """Make the state directory if it is not there. Raises `EngineStartFailed`, `DiskFull`."""
    try:
        with disk_errors(home.root):
            home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise EngineStartFailed(
            f"the state directory {home.root} cannot be made: {error.strerror}",
            hint="set SQUIB_HOME to a directory that this user may write",
        ) from error


async def ensure_engine(home: Home) -> None:
    """Return when an engine listens; start one if none does. Of many callers at once, one starts it.

    Raises `EngineStartFailed` with what the engine said.
    """
    if engine_answers(home):
        return
    make_state_directory(home)
    try:
        with disk_errors(home.root):
            async with locked(home.start_lock, timeout_s=START_TIMEOUT_S):
                if not engine_answers(home):
                    await _start_engine(home)
    except TimeoutError:
        raise EngineStartFailed(
            f"another process has been starting the engine of {home.root} for {START_TIMEOUT_S:g} s",
            hint=f"is it suspended? fuser {home.start_lock} shows it",
        ) from None
    except OSError as error:
        raise EngineStartFailed(
            f"the engine of {home.root} cannot be started: {error.strerror}",
            hint="set SQUIB_HOME to a directory that this user may write",
        ) from error


async def _start_engine(home: Home) -> None:
    read_fd, write_fd = os.pipe()
    try:
        argv = [sys.executable, "-P", "-m", "squib.api.daemon", str(home.root), "--ready-fd", str(write_fd)]
        proc.spawn_daemon(argv, log_path=home.engine_log, pass_fds=(write_fd,))
    except BaseException:
        os.close(read_fd)
        raise
    finally:
        os.close(write_fd)
    answer = await _read_all(read_fd)
    if answer is None:
        raise EngineStartFailed(
            f"the engine did not start within {START_TIMEOUT_S:g} s", hint=f"its log is {home.engine_log}"
        )
    verdict = _verdict(answer)
    if verdict is None:
        raise EngineStartFailed(
            "the engine ended before it was ready", detail=_tail(home.engine_log), hint=f"its log is {home.engine_log}"
        )
    if error := verdict.get("error"):
        raise from_wire(error)


def _verdict(answer: bytes) -> dict[str, Any] | None:
    """What the engine reported; ``None`` if it ended before it had said all of it."""
    with suppress(ValueError):
        verdict = json.loads(answer)
        return verdict if isinstance(verdict, dict) else None
    return None


async def _read_all(fd: int) -> bytes | None:
    """Everything from a pipe up to its end; ``None`` if that does not come in time."""
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
