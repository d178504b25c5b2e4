"""Managing snapshots, and moving them to other machines: `AsyncSnapshots` and `Snapshots`."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import BinaryIO

from squib.errors import EngineUnavailable, InvalidArgument, NotAFile, TransferFailed
from squib.host.files import open_regular
from squib.models import OnProgress, Progress, SnapshotInfo
from squib.protocol.guestfiles import encode_query
from squib.sdk.client import EngineClient
from squib.sdk.config import check_ref
from squib.sdk.content import send
from squib.sdk.part import EnginePart
from squib.sdk.portal import Portal
from squib.sdk.responses import not_understood, read_value
from squib.sdk.transfer.chunks import CHUNK_BYTES, Data, blocking, chunks_of, in_thread
from squib.sdk.transfer.localfiles import escaped, local_errors
from squib.sdk.transfer.newfile import NewFile
from squib.sdk.transfer.targets import Counter, LocalPath, counted

_GATHERED = 64
"""How many chunks of a response, of at most 64 KiB, are written at once."""
_COMPRESSED = {b"\x28\xb5\x2f\xfd": "zstd", b"\x1f\x8b": "gzip", b"\xfd7zXZ\0": "xz"}
"""How compressed files begin, and what decompresses them."""


class AsyncSnapshots(EnginePart):
    """An engine's snapshots, for asyncio programs. `AsyncVM.snapshot` makes them.

    ``engine`` defaults to the engine at ``$SQUIB_URL``, or to the local one.
    """

    async def list(self) -> list[SnapshotInfo]:
        """List the snapshots, oldest first."""
        return await self._engine.snapshots()

    async def get(self, ref: str) -> SnapshotInfo:
        """Look up a snapshot by ID or name. Raises `NotFound`."""
        return await self._engine.snapshot(ref)

    async def delete(self, ref: str) -> None:
        """Delete a snapshot. VMs that were made from it go on. Raises `NotFound`."""
        await self._engine.delete_snapshot(ref)

    async def export_file(
        self, ref: str, path: LocalPath, *, replace: bool = False, on_progress: OnProgress | None = None
    ) -> int:
        """Export a snapshot to a new local file (a tar, mode 0600); return its size in bytes.

        The file has all that another machine needs to make VMs from the snapshot, and it appears when it is complete.
        It holds the VM's memory, disk and environment, with all secrets in them. With ``replace`` it may replace a
        file. ``on_progress`` gets the number of bytes.

        Raises `NotFound`, `FileExists`, `Unsupported` if its VM has a kernel or root filesystem of its own, `DiskFull`,
        and `TransferFailed` if the transfer breaks.
        """
        counter = Counter(on_progress, ref)
        file = await blocking(lambda: NewFile(Path(path), replace=replace))
        with file:
            async with aclosing(counted(self._receive(ref, counter), counter.add)) as chunks:
                gathered: list[bytes] = []
                async for chunk in chunks:
                    if not counter.done:
                        await blocking(file.reserve, counter.total or 0, ref)
                    gathered.append(chunk)
                    if len(gathered) >= _GATHERED:
                        await blocking(file.write, b"".join(gathered))
                        gathered.clear()
            await blocking(file.write, b"".join(gathered))
            await blocking(file.finish)
        return counter.done

    async def export_stream(self, ref: str) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of the file that `export_file` writes. Raises as it does."""
        async with aclosing(self._receive(ref, Counter(None, ref))) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _receive(self, ref: str, counter: Counter) -> AsyncGenerator[bytes, None]:
        started = False
        try:
            async with self._engine.stream("GET", f"/snapshots/{check_ref(ref)}/export") as response:
                started = True
                length = response.headers.get("content-length", "")
                counter.total = int(length) if length.isdecimal() else None
                async for chunk in response.aiter_raw():
                    yield chunk
        except EngineUnavailable as error:
            if started:
                raise TransferFailed(
                    f"the export of snapshot {ref} was interrupted", hint="squib logs --engine shows the engine's log"
                ) from error
            raise

    async def import_file(
        self, path: LocalPath, *, name: str | None = None, on_progress: OnProgress | None = None
    ) -> SnapshotInfo:
        """Import a snapshot from a local file that was exported; return its description.

        It has a new ID, and ``name``; by default its former name. All digests are checked before it is listed. Import
        only files from people whom you would let choose what your VMs run.

        Raises `InvalidArgument` if the file is not an exported snapshot, damaged or truncated; `NameTaken`,
        `DiskFull`, `NoSuchFile`, `NotAFile`.
        """
        file, size = await blocking(_open, path)
        with file:
            counter = Counter(on_progress, os.path.basename(path), total=size)  # noqa: PTH119
            return await self._send(counted(in_thread(_read(file, path)), counter.add), name, on_progress)

    async def import_stream(
        self, data: Data, *, name: str | None = None, on_progress: OnProgress | None = None
    ) -> SnapshotInfo:
        """Import a snapshot from bytes, a binary file or an iterable of bytes. Raises as `import_file` does."""
        counter = Counter(on_progress, "receiving")
        return await self._send(counted(chunks_of(data), counter.add), name, on_progress)

    async def _send(
        self, chunks: AsyncGenerator[bytes, None], name: str | None, on_progress: OnProgress | None
    ) -> SnapshotInfo:
        query = encode_query(("name", None if name is None else check_ref(name)))
        answer = await send(self._engine, "POST", f"/snapshots/import{query}", _announced(chunks, on_progress))
        try:
            return read_value(SnapshotInfo, json.loads(answer))
        except ValueError:
            raise not_understood("snapshot") from None


async def _announced(
    chunks: AsyncGenerator[bytes, None], on_progress: OnProgress | None
) -> AsyncGenerator[bytes, None]:
    """Yield ``chunks``, then report what the engine does with them."""
    async with aclosing(chunks):
        async for chunk in chunks:
            yield chunk
    if on_progress:
        on_progress(Progress(step="checking"))


def _open(path: LocalPath) -> tuple[BinaryIO, int]:
    with local_errors(path):
        if not os.path.isfile(path) and os.path.exists(path):  # noqa: PTH110, PTH113
            raise NotAFile(f"{escaped(path)} is not a regular file", hint="use - for standard input")
        file = open_regular(Path(path))
        begin = file.peek(8)[:8]  # type: ignore[attr-defined]  # it is buffered
    for magic, tool in _COMPRESSED.items():
        if begin.startswith(magic):
            file.close()
            raise InvalidArgument(
                f"{escaped(path)} is compressed with {tool}",
                hint=f"{tool} -dc {escaped(path)} | squib snapshot import -",
            )
    return file, os.fstat(file.fileno()).st_size


def _read(file: BinaryIO, path: LocalPath) -> Iterator[bytes]:
    with local_errors(path):
        while data := file.read(CHUNK_BYTES):
            yield data


class Snapshots:
    """An engine's snapshots. `VM.snapshot` makes them.

    The synchronous version of `AsyncSnapshots`.
    """

    def __init__(self, *, engine: EngineClient | None = None) -> None:
        self._portal = Portal.get()
        self._snapshots = AsyncSnapshots(engine=engine or self._portal.engine())

    def close(self) -> None:
        """See `AsyncSnapshots.close`."""
        self._portal.run(self._snapshots.close())

    def list(self) -> list[SnapshotInfo]:
        """See `AsyncSnapshots.list`."""
        return self._portal.run(self._snapshots.list())

    def get(self, ref: str) -> SnapshotInfo:
        """See `AsyncSnapshots.get`."""
        return self._portal.run(self._snapshots.get(ref))

    def delete(self, ref: str) -> None:
        """See `AsyncSnapshots.delete`."""
        self._portal.run(self._snapshots.delete(ref))

    def export_file(
        self, ref: str, path: LocalPath, *, replace: bool = False, on_progress: OnProgress | None = None
    ) -> int:
        """See `AsyncSnapshots.export_file`. ``on_progress`` runs on squib's thread."""
        return self._portal.run(self._snapshots.export_file(ref, path, replace=replace, on_progress=on_progress))

    def export_stream(self, ref: str) -> Generator[bytes, None, None]:
        """See `AsyncSnapshots.export_stream`."""
        return self._portal.iterate(self._snapshots.export_stream(ref))

    def import_file(
        self, path: LocalPath, *, name: str | None = None, on_progress: OnProgress | None = None
    ) -> SnapshotInfo:
        """See `AsyncSnapshots.import_file`. ``on_progress`` runs on squib's thread."""
        return self._portal.run(self._snapshots.import_file(path, name=name, on_progress=on_progress))

    def import_stream(
        self, data: Data, *, name: str | None = None, on_progress: OnProgress | None = None
    ) -> SnapshotInfo:
        """See `AsyncSnapshots.import_stream`. ``on_progress`` runs on squib's thread."""
        return self._portal.run(self._snapshots.import_stream(data, name=name, on_progress=on_progress))
