"""Bytes on their way through a program: what callers give as data, and blocking readers and writers in threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import IO, Any, TypeVar

from squib.errors import InvalidArgument

T = TypeVar("T")

CHUNK_BYTES = 1 << 18

Data = bytes | bytearray | memoryview | str | IO[bytes] | Iterable[bytes] | AsyncIterable[bytes]
"""What can be written: bytes, text (as UTF-8), a binary file, or an iterable of bytes, which may be asynchronous."""


def chunks_of(data: Data) -> AsyncGenerator[bytes, None]:
    """The bytes of ``data`` in pieces. Files and plain iterables are read in a thread.

    Raises `InvalidArgument` for what holds no bytes, also later, when a piece is none.
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
    """Pieces of a good size out of those of any size."""
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
        f"{type(value).__name__} is not bytes",
        hint="open a file in binary mode; encode text, or give all of it as one str",
    )


async def in_thread(pieces: Iterator[bytes]) -> AsyncGenerator[bytes, None]:
    """What a blocking iterator yields. It runs in threads, one piece ahead."""
    loop = asyncio.get_running_loop()
    coming = loop.run_in_executor(None, next, pieces, None)
    try:
        while (piece := await asyncio.shield(coming)) is not None:
            coming = loop.run_in_executor(None, next, pieces, None)
            yield piece
    finally:
        await asyncio.wait({coming})
        coming.exception()
        if close := getattr(pieces, "close", None):
            await asyncio.to_thread(close)


class ThreadReader:
    """Reads a stream of the event loop from a thread that may block."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._loop = asyncio.get_running_loop()
        self._rest = memoryview(b"")
        self._reading: asyncio.Task[bytes] | None = None
        self._cancelled = False
        self.read_bytes = 0

    def read(self, size: int, /) -> bytes:
        """Between 1 and ``size`` bytes; none at the end. Raises what the stream raises."""
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
        """In the event loop: whoever reads gets `concurrent.futures.CancelledError`, now and later."""
        self._cancelled = True
        if self._reading:
            self._reading.cancel()


async def blocking(work: Callable[..., T], *args: Any, on_cancel: Callable[[], None] = lambda: None) -> T:
    """Do ``work`` in a thread. Cancelled, it calls ``on_cancel`` and waits until ``work`` has come to its end."""
    running = asyncio.get_running_loop().run_in_executor(None, work, *args)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        on_cancel()
        await asyncio.wait({running})
        running.exception()
        raise
