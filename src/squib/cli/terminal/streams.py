"""This process's standard input and output as streams of bytes, without threads and without changing their flags.

A descriptor may be shared with other processes (a terminal is), so it must not be made non-blocking. It is asked first
whether it can be read from or written to, and then in pieces that do not block.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import stat
from collections.abc import AsyncIterator, Callable, Iterator

_READ_BYTES = 1 << 16


async def read_chunks(fd: int) -> AsyncIterator[bytes]:
    """What comes from ``fd``, up to its end."""
    while True:
        await _wait(fd, select.POLLIN)
        chunk = os.read(fd, _READ_BYTES)
        if not chunk:
            return
        yield chunk


async def write_all(fd: int, data: bytes) -> None:
    """Write all of ``data``. Raises `BrokenPipeError` if nobody reads any more."""
    view = memoryview(data)
    while view:
        await _wait(fd, select.POLLOUT)
        with contextlib.suppress(BlockingIOError):
            view = view[os.write(fd, view[: select.PIPE_BUF]) :]


def takes_more(fd: int) -> bool:
    """Whether something can be written to ``fd`` now. A terminal whose window hangs takes nothing, for ever."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return any(event & select.POLLOUT for _, event in poll.poll(0))


@contextlib.contextmanager
def never_blocking(fd: int) -> Iterator[int]:
    """A descriptor to write to in the place of ``fd``. If that is a terminal, which may have less room than a piece
    takes, it is opened anew, so that waiting for it holds up nothing else.
    """
    try:
        if not os.isatty(fd):
            raise OSError
        own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:  # it may belong to another user
        yield fd
        return
    try:
        yield own
    finally:
        os.close(own)


async def _wait(fd: int, event: int) -> None:
    """Return when ``fd`` can be read from (or written to, up to ``PIPE_BUF`` bytes) without blocking."""
    poll = select.poll()
    poll.register(fd, event)
    if poll.poll(0):  # always true for files, which an event loop cannot watch
        return
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    add, remove = (
        (loop.add_reader, loop.remove_reader) if event == select.POLLIN else (loop.add_writer, loop.remove_writer)
    )
    add(fd, _set, ready)
    try:
        await ready
    finally:
        remove(fd)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


@contextlib.contextmanager
def ended_by_broken_pipe(fd: int) -> Iterator[None]:
    """Raise `BrokenPipeError` in the block as soon as ``fd`` is a pipe that nobody reads any more, even if nothing is
    written.
    """
    task = asyncio.current_task()
    assert task is not None
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        yield
        return
    broken = False
    cancelling = task.cancelling()

    def on_broken() -> None:
        nonlocal broken
        broken = True
        unwatch()
        task.cancel()

    unwatch = _watch_errors(fd, on_broken)
    try:
        yield
    except asyncio.CancelledError:
        if broken and task.uncancel() <= cancelling:
            raise BrokenPipeError from None
        raise
    finally:
        unwatch()


def _watch_errors(fd: int, callback: Callable[[], None]) -> Callable[[], None]:
    """Call back when ``fd`` reports an error: as the writing end of a pipe it is never readable, so a reader sees only
    that.
    """
    loop = asyncio.get_running_loop()
    watched = os.dup(fd)  # the event loop takes one reader for each descriptor, and `_wait` may use this one
    loop.add_reader(watched, callback)
    closed = False

    def unwatch() -> None:
        nonlocal closed
        if not closed:
            closed = True
            loop.remove_reader(watched)
            os.close(watched)

    return unwatch
