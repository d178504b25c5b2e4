"""Running a command's coroutine: what signals do to it, and with which status the process ends."""

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
_HTTPX_COMMAND_LINE = "httpx._main"
_interrupt_handlers: list[Callable[[], None]] = []


def run(work: Coroutine[Any, Any, int | None]) -> int:
    """Run ``work`` to its end and return the status of the process.

    SIGINT, SIGTERM and SIGHUP cancel it; the status is then 128 + the signal.
    """
    _import_httpx()
    return asyncio.run(_main(work))


def _import_httpx() -> None:
    """Import httpx without its own command line, which brings rich and pygments: 50 ms of every command of ours."""
    if "httpx" not in sys.modules:
        sys.modules[_HTTPX_COMMAND_LINE] = None  # type: ignore[assignment]
        import httpx  # noqa: F401

        del sys.modules[_HTTPX_COMMAND_LINE]


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
    """In the block, the first SIGINT calls ``handler`` and cancels nothing."""
    _interrupt_handlers.append(handler)
    try:
        yield
    finally:
        if handler in _interrupt_handlers:
            _interrupt_handlers.remove(handler)


async def carry_through(work: Coroutine[Any, Any, T]) -> T:
    """Finish ``work`` whatever signals come meanwhile, and return its result. They take effect at the next await."""
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
