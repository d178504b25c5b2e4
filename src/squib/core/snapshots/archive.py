"""The file format of an exported snapshot: a tar archive (POSIX pax) whose members may have holes.

A member with holes is stored in GNU tar's sparse format 1.0: a map of its extents, then only their data. ``tar tvf``
lists such a file, and ``tar xf`` unpacks it. Extents begin at multiples of `_PAGE_BYTES`.

What is read comes from elsewhere: only regular files are accepted, and no number in a header decides how much memory
is used.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

from squib.errors import InvalidArgument
from squib.host import files

Extent = tuple[int, int]
"""The offset and the length of a part of a file that is data."""

END = bytes(2 * tarfile.BLOCKSIZE)
BATCH_BYTES = 1 << 20
_PAGE_BYTES = 4096
_BLOCK = tarfile.BLOCKSIZE
_MAX_EXTENTS = 1 << 18
_MAX_PAX_BYTES = 16 << 10
_MAX_DIGITS = 18
_MAX_NUMBER = 10**_MAX_DIGITS
_MAX_PADDING = tarfile.RECORDSIZE
_SPARSE = "GNU.sparse."


@dataclass(frozen=True)
class Member:
    """A file in the archive. ``size`` is its size with holes; ``extents`` are in order and do not overlap."""

    name: str
    size: int
    extents: tuple[Extent, ...]

    @property
    def data_bytes(self) -> int:
        """The size of its data, without holes."""
        return sum(length for _, length in self.extents)


def whole(name: str, size: int) -> Member:
    """Describe a file that is stored without holes."""
    return Member(name, size, ((0, size),) if size else ())


def member_of(name: str, fd: int) -> Member:
    """Describe an open file.

    A file in very many parts is described in fewer, larger ones, which contain some zeros.
    """
    size = os.fstat(fd).st_size
    gap = _PAGE_BYTES
    extents = list(_merged(files.data_ranges(fd, 0, size), gap, size))
    while len(extents) > _MAX_EXTENTS:
        gap *= 2
        extents = list(_merged(((start, start + length) for start, length in extents), gap, size))
    return Member(name, size, tuple(extents))


def _merged(ranges: Iterator[tuple[int, int]], gap: int, size: int) -> Iterator[Extent]:
    """Extend ranges to whole pages, and join those with less than ``gap`` bytes between them."""
    begin = end = -1
    for start, stop in ranges:
        start -= start % _PAGE_BYTES
        if begin >= 0 and start - end >= gap:
            yield begin, end - begin
            begin = -1
        begin = start if begin < 0 else begin
        end = min(size, -(-stop // _PAGE_BYTES) * _PAGE_BYTES)
    if begin >= 0:
        yield begin, end - begin


def head(member: Member, *, mtime: int) -> bytes:
    """Return what comes before a member's data: its headers, and its map if it has holes."""
    info = tarfile.TarInfo(member.name)
    info.mode, info.mtime, info.size = 0o600, mtime, member.data_bytes
    if member.data_bytes == member.size:
        return info.tobuf(tarfile.PAX_FORMAT)
    listed = [*member.extents, (member.size, 0)]  # the last one says that the file ends with a hole, as in GNU tar
    numbers = (str(number) for extent in listed for number in extent)
    text = "".join(f"{number}\n" for number in (str(len(listed)), *numbers)).encode()
    text += bytes(padding(len(text)))
    info.name, info.size = f"GNUSparseFile.0/{member.name}", len(text) + member.data_bytes
    info.pax_headers = {
        f"{_SPARSE}major": "1",
        f"{_SPARSE}minor": "0",
        f"{_SPARSE}name": member.name,
        f"{_SPARSE}realsize": str(member.size),
    }
    return info.tobuf(tarfile.PAX_FORMAT) + text


def padding(size: int) -> int:
    """Return how many bytes follow data of this size, up to the next block."""
    return -size % _BLOCK


def batches(extents: Sequence[Extent]) -> Iterator[list[Extent]]:
    """Split extents into batches of at most `BATCH_BYTES`."""
    batch: list[Extent] = []
    room = BATCH_BYTES
    for offset, length in extents:
        while length:
            taken = min(length, room)
            batch.append((offset, taken))
            offset, length, room = offset + taken, length - taken, room - taken
            if not room:
                yield batch
                batch, room = [], BATCH_BYTES
    if batch:
        yield batch


class ArchiveReader:
    """Reads an archive from a stream, member by member.

    Read all data of a member (`read`) before the next member. Raises `InvalidArgument` if it is not an archive such as
    squib writes, or truncated.
    """

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    async def next_member(self) -> Member | None:
        """Return the next member, or ``None`` at the end of the archive."""
        block = await self.read(_BLOCK)
        if not any(block):
            return None
        info, pax = self._header(block), {}
        if info.type == tarfile.XHDTYPE:
            if info.size > _MAX_PAX_BYTES:
                refuse(f"a header has {info.size} bytes")
            pax = _pax_records((await self.read(info.size + padding(info.size)))[: info.size])
            info = self._header(await self.read(_BLOCK))
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            refuse(f"{info.name[:100]!r} is not a regular file")
        size = _number(pax["size"]) if "size" in pax else info.size
        if not any(key.startswith(_SPARSE) for key in pax):
            return whole(info.name, size)
        if (pax.get(f"{_SPARSE}major"), pax.get(f"{_SPARSE}minor")) != ("1", "0"):
            refuse("a sparse file has an unknown format")
        name, real_size = pax.get(f"{_SPARSE}name", ""), _number(pax.get(f"{_SPARSE}realsize", ""))
        extents, map_bytes = await self._map(real_size)
        member = Member(name, real_size, extents)
        if map_bytes + member.data_bytes != size:
            refuse(f"the map of {name[:100]!r} does not match its size")
        return member

    @staticmethod
    def _header(block: bytes) -> tarfile.TarInfo:
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            refuse(f"a header is damaged: {error}")
        if not 0 <= info.size <= _MAX_NUMBER:
            refuse(f"a header has the size {info.size}")
        return info

    async def _map(self, size: int) -> tuple[tuple[Extent, ...], int]:
        """Read the map of a file of this size; return its extents, and how many bytes it takes."""
        block = await self.read(_BLOCK)
        first, newline, _ = block.partition(b"\n")
        count = _number(first.decode("latin-1"))
        if not newline or count > _MAX_EXTENTS + 1:
            refuse(f"a file has {count} parts")
        blocks, lines, wanted = [block], block.count(b"\n"), 2 * count + 1
        while lines < wanted:
            if len(blocks) * _BLOCK > wanted * (_MAX_DIGITS + 1):
                refuse("the map of a file is damaged")
            blocks.append(await self.read(_BLOCK))
            lines += blocks[-1].count(b"\n")
        numbers = [_number(text.decode("latin-1")) for text in b"".join(blocks).split(b"\n", wanted)[1:wanted]]
        return _checked(list(zip(numbers[::2], numbers[1::2], strict=True)), size), len(blocks) * _BLOCK

    async def read(self, size: int) -> bytes:
        """Return exactly ``size`` bytes."""
        gathered = [self._rest]
        found = len(self._rest)
        while found < size:
            chunk = await anext(self._chunks, None)
            if chunk is None:
                refuse("the file is truncated")
            gathered.append(chunk)
            found += len(chunk)
        data = b"".join(gathered)
        self._rest = data[size:]
        return data[:size]

    async def finish(self) -> None:
        """Read the rest of the stream, which must be zeros, as tar pads its archives."""
        rest = self._rest
        async for chunk in self._chunks:
            rest += chunk
            if len(rest) > _MAX_PADDING:
                break
        if len(rest) < _BLOCK:
            refuse("the file is truncated")
        if len(rest) > _MAX_PADDING or any(rest):
            refuse("something follows the end of the archive")


def _checked(extents: list[Extent], size: int) -> tuple[Extent, ...]:
    """Check the extents of a file of this size. The last may be empty, and at the file's end."""
    if extents and extents[-1] == (size, 0):
        extents.pop()
    end = 0
    for offset, length in extents:
        if offset < end or not length or offset % _PAGE_BYTES:
            refuse("the map of a file is damaged")
        end = offset + length
    if end > size:
        refuse("the map of a file is damaged")
    return tuple(extents)


def _pax_records(data: bytes) -> dict[str, str]:
    """Parse the records of a pax header: ``LENGTH KEY=VALUE`` and a newline, each."""
    records = {}
    while data:
        length, _, _ = data.partition(b" ")
        end = _number(length.decode("latin-1"))
        record = data[len(length) + 1 : end]
        key, equals, value = record.removesuffix(b"\n").partition(b"=")
        if end > len(data) or not record.endswith(b"\n") or not equals:
            refuse("a header is damaged")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
        data = data[end:]
    return records


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        refuse(f"{text[:40]!r} is not a number")
    return int(text)


def refuse(reason: str) -> NoReturn:
    """Raise the error for a file that cannot be imported."""
    raise InvalidArgument(f"the file cannot be imported as a snapshot: {reason}")
