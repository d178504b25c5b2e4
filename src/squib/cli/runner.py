"""Run a command's coroutine, and handle signals meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

SIGNAL_BASE = 128
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_interrupt_handlers: list[Callable[[], None]] = []


def run(work: Coroutine[Any, Any, int | None]) -> int:
    """Run ``work`` and return the exit status of the process.

    SIGINT, SIGTERM and SIGHUP cancel it; the status is then 128 + the signal number.
    """
    _import_httpx()
    return asyncio.run(_main(work))


def _import_httpx() -> None:
    """Import httpx without its command line, which takes 60 ms to import.

    The command line is an extra (``httpx[cli]``): httpx leaves it out if click cannot be imported.
    """
    if "httpx" not in sys.modules and "click" not in sys.modules:
        sys.modules["click"] = None  # type: ignore[assignment]
        try:
            import httpx  # noqa: F401
        finally:
            del sys.modules["click"]


async def _main(work: Coroutine[Any, Any, int | None]) -> int:
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    received: list[int] = []

    def on_signal(number: int) -> None:
        if number == signal.SIGINT and _interrupt_handlers:
            _interrupt_handlers.pop()()
            return
        received.append(number)
        task.cancel()

    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    try:
        return await task or 0
    except asyncio.CancelledError:
        if received:
            return SIGNAL_BASE + received[0]
        raise


@contextlib.contextmanager
def first_interrupt(handler: Callable[[], None]) -> Iterator[None]:
    """Call ``handler`` at the first SIGINT in the block; keep working."""
    _interrupt_handlers.append(handler)
    try:
        yield
    finally:
        if handler in _interrupt_handlers:
            _interrupt_handlers.remove(handler)


async def shielded(work: Coroutine[Any, Any, T]) -> T:
    """Finish ``work`` even if a signal arrives, and return its result.

    The signal takes effect at the next await.
    """
    current = asyncio.current_task()
    assert current is not None
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        current.cancel()
    return task.result()
