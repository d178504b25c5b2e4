"""The file objects that `Files.open` and `AsyncFiles.open` return."""

from __future__ import annotations

import asyncio
import codecs
import io
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from types import TracebackType
from typing import IO, Any, Literal, Self

from squib.errors import InvalidArgument, IsADirectory, NotAFile
from squib.models import FileInfo, FileType
from squib.protocol.guestfiles import GuestPath, check_path
from squib.sdk.fileclient import FileClient
from squib.sdk.portal import Portal
from squib.sdk.transfer.chunks import CHUNK_BYTES, Resumable
from squib.undo import AsyncUndo, Undo

Mode = Literal["r", "rb", "w", "wb"]

_BUFFER_BYTES = 1 << 20
_WHENCE = "whence must be 0, 1 or 2"


class Reader:
    """A sequential reader.

    It sends one request and reads its response on demand.
    """

    def __init__(self, chunks: AsyncGenerator[bytes, None]) -> None:
        self._chunks = Resumable(chunks)
        self._rest = bytearray()

    async def read(self, size: int) -> bytes:
        """Return ``size`` bytes, or fewer at the end of the file.

        A negative ``size`` reads all remaining bytes. A cancelled call consumes nothing.
        """
        with suppress(StopAsyncIteration):
            while size < 0 or len(self._rest) < size:
                self._rest += await self._chunks.next()
        size = len(self._rest) if size < 0 else size
        piece = bytes(self._rest[:size])
        del self._rest[:size]
        return piece

    async def close(self) -> None:
        """Cancel the request."""
        await self._chunks.aclose()


class Writer:
    """A sequential writer.

    It sends one request and streams the written data as its body.
    """

    def __init__(self, client: FileClient, path: GuestPath) -> None:
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=1)
        self._buffer = bytearray()
        self._writing = asyncio.create_task(client.write(path, self._chunks(), parents=True), name="write a file")

    async def write(self, data: bytes) -> None:
        """Buffer or send ``data``.

        Raises the guest's error as soon as it arrives.
        """
        self._buffer += data
        if len(self._buffer) >= CHUNK_BYTES:
            piece = bytes(self._buffer)
            self._buffer.clear()
            await self._put(piece)

    async def close(self) -> FileInfo:
        """Finish the request, so that the file appears.

        Raises the guest's error.
        """
        if self._buffer:
            await self._put(bytes(self._buffer))
        await self._put(None)
        return await self._writing

    async def discard(self) -> None:
        """Cancel the request, so that the file does not appear. Idempotent."""
        self._writing.cancel()
        await asyncio.gather(self._writing, return_exceptions=True)

    async def _put(self, piece: bytes | None) -> None:
        putting = asyncio.ensure_future(self._pieces.put(piece))
        await asyncio.wait({putting, self._writing}, return_when=asyncio.FIRST_COMPLETED)
        if not putting.done():
            putting.cancel()
            self._writing.result()

    async def _chunks(self) -> AsyncGenerator[bytes, None]:
        while (piece := await self._pieces.get()) is not None:
            yield piece


class AsyncFile:
    """An open guest file, read or written sequentially.

    Use it as an async context manager, or call `aclose` when done.
    """

    def __init__(self, reader: Reader | None, writer: Writer | None, encoding: str | None, errors: str) -> None:
        self._reader = reader
        self._writer = writer
        self._encoding = encoding
        self._errors = errors
        self._decoder = codecs.getincrementaldecoder(encoding)(errors) if encoding else None
        self._text = ""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer and kind:
            await self._writer.discard()
            self._writer = None
        await self.aclose()

    async def read(self, size: int = -1) -> Any:
        """Return ``size`` bytes, or characters in text mode; fewer at the end.

        By default, return everything that remains.
        """
        if self._reader is None:
            raise io.UnsupportedOperation("the file is not open for reading")
        if self._decoder is None:
            return await self._reader.read(size)
        while size < 0 or len(self._text) < size:
            data = await self._reader.read(CHUNK_BYTES)
            self._text += self._decoder.decode(data, final=not data)
            if not data:
                break
        size = len(self._text) if size < 0 else size
        piece, self._text = self._text[:size], self._text[size:]
        return piece

    async def write(self, data: Any) -> int:
        """Write bytes, or text in text mode.

        Returns the length of ``data``.
        """
        if self._writer is None:
            raise io.UnsupportedOperation("the file is not open for writing")
        await self._writer.write(data.encode(self._encoding, self._errors) if self._encoding else bytes(data))
        return len(data)

    async def aclose(self) -> None:
        """Close the file. A written file now appears. Idempotent.

        Raises the guest's error.
        """
        reader, writer = self._reader, self._writer
        self._reader = self._writer = None
        if reader:
            await reader.close()
        if writer:
            async with AsyncUndo(writer.discard):
                await writer.close()


async def open_async(client: FileClient, path: GuestPath, mode: Mode, encoding: str, errors: str) -> AsyncFile:
    """Open a file for asyncio. See `AsyncFiles.open`."""
    check_mode(mode)
    text = None if mode.endswith("b") else encoding
    if mode.startswith("w"):
        check_path(path)
        return AsyncFile(None, Writer(client, path), text, errors)
    await _check_readable(client, path)
    return AsyncFile(Reader(client.read(path)), None, text, errors)


def check_mode(mode: str) -> None:
    """Raise `InvalidArgument` for an unknown mode."""
    if mode not in ("r", "rb", "w", "wb"):
        raise InvalidArgument(f"invalid mode {mode!r}: use r, rb, w or wb")


async def _check_readable(client: FileClient, path: GuestPath) -> FileInfo:
    info = await client.stat(path)
    if info.type is not FileType.FILE:
        kind = IsADirectory if info.type is FileType.DIRECTORY else NotAFile
        raise kind(f"{check_path(path)!r} is a {info.type}, not a regular file")
    return info


class _RawReader(io.RawIOBase):
    """A raw reader with random access.

    Until the first seek it uses a single request, so all data comes from the same file even if the file is replaced
    meanwhile. After a seek, each read is a separate request.
    """

    def __init__(self, portal: Portal, client: FileClient, path: GuestPath) -> None:
        self._portal, self._client, self._path = portal, client, path
        portal.run(_check_readable(client, path))
        self.name = check_path(path)
        self._at = 0
        self._sought = False
        self._in_order: Reader | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence not in (io.SEEK_SET, io.SEEK_CUR, io.SEEK_END):
            raise ValueError(_WHENCE)
        base = self._at if whence == io.SEEK_CUR else 0
        if whence == io.SEEK_END:
            base = self._portal.run(self._client.stat(self._path)).size
        if base + offset < 0:
            raise ValueError(f"negative seek position {base + offset}")
        if base + offset != self._at:
            self._at = base + offset
            self._sought = True
            self._portal.run(self._leave())
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self._portal.run(self._read(len(view)))
        view[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        return self._portal.run(self._read(None))

    def close(self) -> None:
        if not self.closed:
            super().close()
            if self._in_order:
                self._portal.run(self._leave())

    async def _leave(self) -> None:
        if self._in_order:
            await self._in_order.close()
            self._in_order = None

    async def _read(self, length: int | None) -> bytes:
        if not self._sought:
            return await self._read_in_order(-1 if length is None else length)
        async with aclosing(self._client.read(self._path, offset=self._at, length=length)) as chunks:
            data = b"".join([chunk async for chunk in chunks])
        self._at += len(data)
        return data

    async def _read_in_order(self, length: int) -> bytes:
        if self._in_order is None:
            self._in_order = Reader(self._client.read(self._path, offset=self._at))
        data = await self._in_order.read(length)
        self._at += len(data)
        if length < 0 or len(data) < length:  # at the end; the next read checks for appended data
            await self._leave()
        return data


class _RawWriter(io.RawIOBase):
    """A sequential raw writer. The file appears when the writer is closed."""

    def __init__(self, portal: Portal, client: FileClient, path: GuestPath) -> None:
        self.name = check_path(path)
        self._portal = portal
        self._writer = portal.run(_make_writer(client, path))
        self._discarded = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        if not self._discarded:
            self._portal.run(self._writer.write(bytes(data)))
        return len(data)

    def discard(self) -> None:
        self._discarded = True
        self._portal.run(self._writer.discard())

    def close(self) -> None:
        if self.closed:
            return
        try:
            with Undo(self.discard):
                if not self._discarded:
                    self._portal.run(self._writer.close())
        finally:
            super().close()


async def _make_writer(client: FileClient, path: GuestPath) -> Writer:
    return Writer(client, path)


class _BinaryWriter(io.BufferedWriter):
    def __init__(self, raw: _RawWriter) -> None:
        super().__init__(raw, CHUNK_BYTES)
        self._sink = raw

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind:
            self._sink.discard()
        self.close()


class _TextWriter(io.TextIOWrapper):
    def __init__(self, raw: _RawWriter, encoding: str, errors: str) -> None:
        super().__init__(io.BufferedWriter(raw, CHUNK_BYTES), encoding, errors, newline="\n")
        self._sink = raw

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind:
            self._sink.discard()
        self.close()


def open_sync(portal: Portal, client: FileClient, path: GuestPath, mode: Mode, encoding: str, errors: str) -> IO[Any]:
    """Open a file as an `io` object. See `Files.open`."""
    check_mode(mode)
    match mode:
        case "rb":
            return io.BufferedReader(_RawReader(portal, client, path), _BUFFER_BYTES)
        case "r":
            raw = io.BufferedReader(_RawReader(portal, client, path), _BUFFER_BYTES)
            return io.TextIOWrapper(raw, encoding, errors, newline="\n")
        case "wb":
            return _BinaryWriter(_RawWriter(portal, client, path))
        case "w":
            return _TextWriter(_RawWriter(portal, client, path), encoding, errors)
