"""Byte chunks of a caller's data, and threads for blocking reads or writes."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from typing import IO, Any, Generic, Self, TypeVar

from squib.errors import InvalidArgument
from squib.undo import to_its_end

T = TypeVar("T")

CHUNK_BYTES = 1 << 18
_LEAVE_S = 1.0

Data = bytes | bytearray | memoryview | str | IO[bytes] | Iterable[bytes] | AsyncIterable[bytes]
"""Data to write: bytes, text (encoded as UTF-8), a binary file, or a sync or async iterable of bytes."""


def chunks_of(data: Data) -> AsyncGenerator[bytes, None]:
    """Yield the bytes of ``data`` in chunks.

    Files and synchronous iterables are read in a thread.

    Raises `InvalidArgument` if ``data`` has an unsupported type. If an item of a file or iterable is not bytes, the
    error is raised during iteration.
    """
    if isinstance(data, str):
        data = data.encode()
    if isinstance(data, bytes | bytearray | memoryview):
        return _sliced(memoryview(data).cast("B"))
    if isinstance(data, AsyncIterable):
        return _checked(data)
    if hasattr(data, "read"):
        return in_thread(iter(lambda: _bytes(data.read(CHUNK_BYTES)), b""))
    if isinstance(data, Iterable):
        return in_thread(_gathered(iter(data)))
    raise _not_bytes(data)


async def _sliced(view: memoryview) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(view), CHUNK_BYTES):
        yield bytes(view[start : start + CHUNK_BYTES])


async def _checked(chunks: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    async for chunk in chunks:
        yield _bytes(chunk)


def _gathered(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Merge small pieces into chunks of at least ``CHUNK_BYTES``."""
    gathered = bytearray()
    for piece in pieces:
        gathered += _bytes(piece)
        if len(gathered) >= CHUNK_BYTES:
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield bytes(gathered)


def _bytes(piece: object) -> bytes:
    if not isinstance(piece, bytes | bytearray | memoryview):
        raise _not_bytes(piece)
    return bytes(piece)


def _not_bytes(value: object) -> InvalidArgument:
    return InvalidArgument(
        f"expected bytes, got {type(value).__name__}",
        hint="open files in binary mode; encode text, or pass it as a single str",
    )


async def in_thread(pieces: Iterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield the items of a blocking iterator, which runs in its own thread.

    The thread reads one item ahead, and closes the iterator. Closing this generator waits at most one second for the
    thread. If the iterator still blocks then, the thread closes it after its next item.
    """
    loop = asyncio.get_running_loop()
    asked: queue.SimpleQueue[asyncio.Future[bytes | None] | None] = queue.SimpleQueue()

    def ask() -> asyncio.Future[bytes | None]:
        future: asyncio.Future[bytes | None] = loop.create_future()
        asked.put(future)
        return future

    coming = ask()
    running = threaded(lambda: _answer(pieces, asked, loop))
    try:
        while (piece := await _result(asyncio.shield(coming))) is not None:
            coming = ask()
            yield piece
    finally:
        asked.put(None)
        await asyncio.wait({running}, timeout=_LEAVE_S)
        coming.cancel()


def _answer(
    pieces: Iterator[bytes],
    asked: queue.SimpleQueue[asyncio.Future[bytes | None] | None],
    loop: asyncio.AbstractEventLoop,
) -> None:
    try:
        while (future := asked.get()) is not None:
            with _Outcome(loop, future) as outcome:
                outcome.value = next(pieces, None)
    finally:
        if close := getattr(pieces, "close", None):
            close()


def threaded(work: Callable[[], T]) -> asyncio.Future[T]:
    """Run ``work`` in a new daemon thread.

    Use this for work that may block for long: it would occupy a thread of the event loop's small pool. The thread does
    not delay the exit of the program.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    future.add_done_callback(_look_at)

    def run() -> None:
        with _Outcome(loop, future) as outcome:
            outcome.value = work()

    threading.Thread(target=run, name="squib blocking", daemon=True).start()
    return future


class _CallerExitError(Exception):
    """The caller's code in a thread raised a GeneratorExit.

    A task that gets one from a future closes its coroutine.
    """

    def __init__(self, error: GeneratorExit) -> None:
        super().__init__()
        self.error = error


async def _result(future: Awaitable[T]) -> T:
    """Return the result of a thread, or raise what it raised."""
    try:
        return await future
    except _CallerExitError as exit:
        raise exit.error from None


class _Outcome:
    """A block in a thread whose outcome settles a future of the event loop.

    The outcome is ``value``, or the error that the block raised.
    """

    value: Any = None

    def __init__(self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any]) -> None:
        self._loop, self._future = loop, future

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._tell, error)
        return True

    def _tell(self, error: BaseException | None) -> None:
        if self._future.done():
            return
        if isinstance(error, StopIteration):  # which a future does not take
            error = RuntimeError("the caller's code raised StopIteration")
        elif isinstance(error, GeneratorExit):
            error = _CallerExitError(error)
        if error is None:
            self._future.set_result(self.value)
        else:
            self._future.set_exception(error)


def _look_at(future: asyncio.Future[Any]) -> None:
    """Mark a future's exception as retrieved.

    Otherwise asyncio logs it if nothing awaits the future.
    """
    if not future.cancelled():
        future.exception()


class Resumable(Generic[T]):
    """An async generator that loses no item if `next` is cancelled.

    `next` can then be called again.
    """

    def __init__(self, items: AsyncGenerator[T, None]) -> None:
        self._items = items
        self._coming: asyncio.Task[T] | None = None

    async def next(self) -> T:
        """Return the next item.

        Raises `StopAsyncIteration` at the end, and any error of the generator.
        """
        if self._coming is None:
            self._coming = asyncio.create_task(_next(self._items), name="next item")
        item = await asyncio.shield(self._coming)
        self._coming = None
        return item

    async def aclose(self) -> None:
        """Close the generator. Idempotent."""
        if self._coming:
            self._coming.cancel()
            await asyncio.gather(self._coming, return_exceptions=True)
            self._coming = None
        await self._items.aclose()


async def _next(items: AsyncGenerator[T, None]) -> T:
    return await anext(items)


class ThreadReader:
    """Read an async stream from a thread that may block."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._loop = asyncio.get_running_loop()
        self._rest = memoryview(b"")
        self._reading: asyncio.Task[bytes] | None = None
        self._cancelled = False
        self.read_bytes = 0

    def read(self, size: int, /) -> bytes:
        """Return 1 to ``size`` bytes, or ``b""`` at the end.

        Raises any error of the stream.
        """
        if not self._rest:
            self._rest = memoryview(asyncio.run_coroutine_threadsafe(self._next(), self._loop).result())
        piece, self._rest = bytes(self._rest[:size]), self._rest[size:]
        self.read_bytes += len(piece)
        return piece

    async def _next(self) -> bytes:
        if self._cancelled:
            raise asyncio.CancelledError
        self._reading = asyncio.current_task()
        async for chunk in self._chunks:
            if chunk:
                return chunk
        return b""

    def cancel(self) -> None:
        """Make current and later reads raise `CancelledError`.

        The error is `concurrent.futures.CancelledError`. Call this method in the event loop.
        """
        self._cancelled = True
        if self._reading:
            self._reading.cancel()


async def blocking(work: Callable[..., T], *args: Any) -> T:
    """Run short blocking ``work`` in a thread.

    On cancellation, wait until it finishes.
    """
    return await _result(to_its_end(asyncio.get_running_loop().run_in_executor(None, work, *args)))


async def reading(work: Callable[[ThreadReader], T], chunks: AsyncIterator[bytes]) -> T:
    """Run ``work``, which reads ``chunks``, in a thread.

    On cancellation, cancel the reader and wait for ``work``.
    """
    reader = ThreadReader(chunks)
    return await _result(to_its_end(threaded(lambda: work(reader)), reader.cancel))
