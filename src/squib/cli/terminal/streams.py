"""Read and write standard streams without blocking the event loop.

The descriptors may be shared with other processes (a terminal is), so they must not be made non-blocking. Instead they
are polled first, then read or written in pieces that cannot block.
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
    """Yield the data from ``fd`` until end of file."""
    while True:
        await _wait(fd, select.POLLIN)
        chunk = os.read(fd, _READ_BYTES)
        if not chunk:
            return
        yield chunk


async def write_all(fd: int, data: bytes) -> None:
    """Write all of ``data``.

    Raises `BrokenPipeError` if the reader is gone.
    """
    view = memoryview(data)
    while view:
        await _wait(fd, select.POLLOUT)
        with contextlib.suppress(BlockingIOError):
            view = view[os.write(fd, view[: select.PIPE_BUF]) :]


def is_writable(fd: int) -> bool:
    """Return whether ``fd`` can be written to now.

    A terminal whose window hangs never can.
    """
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return any(event & select.POLLOUT for _, event in poll.poll(0))


@contextlib.contextmanager
def opened_nonblocking(fd: int) -> Iterator[int]:
    """Yield a second, non-blocking descriptor of the terminal ``fd``.

    Yields ``fd`` itself if it is another kind of file or cannot be opened again. A terminal may have room for less than
    one piece, so that writing to ``fd`` would block the event loop.
    """
    try:
        if not os.isatty(fd):
            raise OSError
        own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:  # the terminal may belong to another user
        yield fd
        return
    try:
        yield own
    finally:
        os.close(own)


async def _wait(fd: int, event: int) -> None:
    """Wait until ``fd`` can be read, or can take ``PIPE_BUF`` bytes."""
    poll = select.poll()
    poll.register(fd, event)
    if poll.poll(0):  # always true for regular files, which an event loop cannot watch
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
    """Raise `BrokenPipeError` in the block when the pipe ``fd`` has no reader.

    It is raised at once, even if nothing is written. Other kinds of files are not watched.
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
    """Call ``callback`` when the pipe ``fd`` reports an error.

    An error is the only event that the writing end reports as readable. Returns a function that stops the watch.
    """
    loop = asyncio.get_running_loop()
    watched = os.dup(fd)  # the event loop allows one reader per descriptor, and `_wait` may use this one
    loop.add_reader(watched, callback)
    closed = False

    def unwatch() -> None:
        nonlocal closed
        if not closed:
            closed = True
            loop.remove_reader(watched)
            os.close(watched)

    return unwatch
