"""``logs``: the consoles of guests and the engine's own log, as bytes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import BinaryIO

from squib.core.engine import Engine
from squib.core.lifecycle.transitions import WITH_VMM
from squib.errors import NotFound
from squib.host.logs import rotated, tail

MAX_BYTES = 2 << 20
"""The most that is returned of a log."""

_POLL_S = 0.1
_CHUNK_BYTES = 1 << 16


def console(engine: Engine, ref: str, *, lines: int | None) -> bytes:
    """Return the last ``lines`` of a VM's console since its last start.

    If ``lines`` is ``None``, returns all lines, at most `MAX_BYTES`.

    Raises `NotFound`.
    """
    return tail(_console_path(engine, ref), MAX_BYTES, lines=lines)


def follow_console(engine: Engine, ref: str, *, lines: int | None) -> AsyncIterator[bytes]:
    """Yield a VM's console as `console` does, then follow it.

    Ends when the VM ends.

    Raises `NotFound`.
    """
    vm_id = engine.store.get_vm(ref).vm_id

    def ended() -> bool:
        try:
            return engine.store.get_vm(vm_id).state not in WITH_VMM
        except NotFound:
            return True

    return _follow(_console_path(engine, vm_id), lines, ended)


def engine_log(engine: Engine, *, lines: int | None) -> bytes:
    """Return the last ``lines`` of the engine's own log."""
    return tail(engine.home.engine_log, MAX_BYTES, lines=lines)


def follow_engine_log(engine: Engine, *, lines: int | None) -> AsyncIterator[bytes]:
    """Yield the engine's log as `engine_log` does, then follow it for ever."""
    return _follow(engine.home.engine_log, lines, lambda: False)


def _console_path(engine: Engine, ref: str) -> Path:
    record = engine.store.get_vm(ref)
    return engine.drivers.get(record.driver).console_log(engine.driver_folder(record))


async def _follow(path: Path, lines: int | None, ended: Callable[[], bool]) -> AsyncIterator[bytes]:
    """Yield the end of a log and what is added to it, until ``ended``.

    Goes on with the new file when the log is rotated.
    """
    file: BinaryIO | None = None
    try:
        file = _open(path)
        if first := _beginning(path, file, lines):
            yield first
        while True:
            over = ended()  # before the last read, which then gets all that was printed
            while chunk := file.read(_CHUNK_BYTES) if file else b"":
                yield chunk
            if file is None or _was_replaced(path, file):
                if file:
                    file.close()
                file = _open(path)
                if file:
                    continue
            if over:
                return
            await asyncio.sleep(_POLL_S)
    finally:
        if file:
            file.close()


def _open(path: Path) -> BinaryIO | None:
    try:
        return path.open("rb", buffering=0)
    except FileNotFoundError:
        return None


def _beginning(path: Path, file: BinaryIO | None, lines: int | None) -> bytes:
    """Return what the log holds now; reads ``file`` to its end."""
    present = b""
    while file and (chunk := file.read(_CHUNK_BYTES)):
        present = (present + chunk)[-MAX_BYTES:]
    data = (tail(rotated(path), MAX_BYTES) + present)[-MAX_BYTES:]
    if lines is None:
        return data
    return b"".join(data.splitlines(keepends=True)[-lines:]) if lines else b""


def _was_replaced(path: Path, file: BinaryIO) -> bool:
    try:
        return not os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
