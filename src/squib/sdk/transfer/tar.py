"""Reading a tar that a guest sends: headers to plain members, with nothing in it trusted.

Python's ``tarfile`` is not used: it reads sparse files, old formats and damaged headers leniently, holds every member
that it has seen, and leaves the ways out of the target to filters that have had holes. What the agent and other PAX and
GNU writers send is a short list of 512-byte headers, so this reads that list and refuses everything else.

Known are ustar headers, PAX records (``x``; of global ones, ``g``, only `ERROR_RECORD` counts), and GNU's long names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from squib.errors import ArchiveRefused, TransferFailed
from squib.sdk.transfer.localfiles import escaped

ERROR_RECORD = b"SQUIB.error"
"""The record with which the agent ends an archive that it could not finish (protocol/agent.md)."""

BLOCK = 512
CHUNK = 1 << 18
MAX_DEPTH = 100
"""How many components a name in an archive may have, either way: each is an open directory."""

_ZEROS = bytes(BLOCK)
_MAX_EXTENSION = 1 << 20
_MAX_EXTENSIONS = 8  # headers before one member
_MAX_PADDING = 1 << 20  # after the end
_MAX_SIZE = (1 << 63) - 1
_MAX_ID = (1 << 32) - 2  # 2^32 - 1 is "leave it" to chown
_MAX_TIME = 1 << 40
_CHECKSUM = slice(148, 156)
_POSIX, _GNU = b"ustar\x0000", b"ustar  \0"
_OCTAL = re.compile(rb" *([0-7]*)[ \0]*")
_DECIMAL = re.compile(rb"[0-9]{1,19}")
_TIME = re.compile(rb"(-?)([0-9]{1,13})(?:\.([0-9]{0,30}))?")
_RECORD_LENGTH = re.compile(rb"([0-9]{1,7}) ")
_NEGATIVE = 0xFF
_POSITIVE = 0x80


class Kind(Enum):
    """What a member is."""

    FILE = b"0"
    HARD_LINK = b"1"
    SYMLINK = b"2"
    DIRECTORY = b"5"


_KINDS = {kind.value: kind for kind in Kind} | {b"\0": Kind.FILE}
_REFUSED = {
    b"3": "it is a character device",
    b"4": "it is a block device",
    b"6": "it is a FIFO",
    b"S": "it is a sparse file",
}
_KEPT_RECORDS = frozenset({b"path", b"linkpath", b"size", b"mtime", b"uid", b"gid", ERROR_RECORD})
_SPARSE_RECORDS = (b"GNU.sparse.", b"SCHILY.realsize")


@dataclass(frozen=True, slots=True)
class Member:
    """An entry of an archive, as it names itself. ``mode`` is permission bits only; ``link`` is where a link leads."""

    path: bytes
    kind: Kind
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    link: bytes


class Readable(Protocol):
    """Where an archive comes from."""

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes; none at the end."""
        ...


class TarReader:
    """The members of an archive, in its order. The content of a file is read before the next member is asked for."""

    def __init__(self, source: Readable) -> None:
        self._input = _Input(source)
        self._left = 0

    def __iter__(self) -> Iterator[Member]:
        """Raises `ArchiveRefused`, and `TransferFailed` if the guest says that it could not finish."""
        while (member := self._next()) is not None:
            self._left = member.size
            yield member
            assert not self._left
            self._input.exactly(-member.size % BLOCK)

    def content(self) -> Iterator[bytes]:
        """The content of the present member, in pieces of at most `CHUNK` bytes."""
        while self._left:
            piece = self._input.some(min(self._left, CHUNK))
            self._left -= len(piece)
            yield piece

    def _next(self) -> Member | None:
        records: dict[bytes, bytes] = {}
        for _ in range(_MAX_EXTENSIONS + 1):
            block = self._input.exactly(BLOCK)
            if block == _ZEROS and not records:
                self._finish()
                return None
            size = _check_header(block)
            type_ = block[156:157]
            if type_ == b"x":
                records |= _parse_records(self._extension(size))
            elif type_ == b"g":
                _check_error(_parse_records(self._extension(size)))
            elif type_ in (b"L", b"K"):
                key = b"path" if type_ == b"L" else b"linkpath"
                records.setdefault(key, self._extension(size).rstrip(b"\0"))
            else:
                return _make_member(block, size, records)
        raise ArchiveRefused(f"more than {_MAX_EXTENSIONS} headers extend one entry of the archive")

    def _extension(self, size: int) -> bytes:
        if size > _MAX_EXTENSION:
            raise ArchiveRefused(f"a header of the archive is extended by {size} bytes; {_MAX_EXTENSION} is the limit")
        return self._input.exactly(size + -size % BLOCK)[:size]

    def _finish(self) -> None:
        if self._input.exactly(BLOCK) != _ZEROS:
            raise ArchiveRefused("there is something after the end of the archive")
        self._input.only_zeros(_MAX_PADDING)


class _Input:
    """The bytes of the archive, in whatever pieces they come."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._data = b""
        self._at = 0

    def some(self, limit: int) -> bytes:
        """Between 1 and ``limit`` bytes."""
        if self._at == len(self._data):
            self._data, self._at = self._source.read(CHUNK), 0
            if not self._data:
                raise ArchiveRefused("the archive breaks off before its end")
        piece = self._data[self._at : self._at + limit]
        self._at += len(piece)
        return piece

    def exactly(self, size: int) -> bytes:
        piece = self._data[self._at : self._at + size]
        self._at += len(piece)
        if len(piece) == size:
            return piece
        pieces = [piece]
        size -= len(piece)
        while size:
            pieces.append(self.some(size))
            size -= len(pieces[-1])
        return b"".join(pieces)

    def only_zeros(self, limit: int) -> None:
        """Read to the end, where nothing but zeros may come."""
        data = self._data[self._at :]
        while not data.strip(b"\0") and len(data) <= limit:
            limit -= len(data)
            data = self._source.read(CHUNK)
            if not data:
                return
        raise ArchiveRefused("there is something after the end of the archive")


def _check_header(block: bytes) -> int:
    """The size in a header that is one."""
    if block[257:265] not in (_POSIX, _GNU):
        raise ArchiveRefused("what came is no archive: a header is neither of the POSIX nor of the GNU format")
    if _number(block[_CHECKSUM]) != sum(block) - sum(block[_CHECKSUM]) + 8 * ord(" "):
        raise ArchiveRefused("the archive is damaged: the checksum of a header is wrong")
    size = _number(block[124:136])
    if not 0 <= size <= _MAX_SIZE:
        raise ArchiveRefused(f"{escaped(_text(block[:100]))}: its size is {size} bytes")
    return size


def _make_member(block: bytes, size: int, records: dict[bytes, bytes]) -> Member:
    name = _text(block[:100])
    if block[257:265] == _POSIX and (prefix := _text(block[345:500])):
        name = prefix + b"/" + name
    path = records.get(b"path") or name
    kind = _KINDS.get(block[156:157])
    if kind is None:
        what = _REFUSED.get(block[156:157], f"entries of type {escaped(block[156:157])} are not known")
        raise refused(path, what)
    if b"size" in records:
        size = _decimal(path, "size", records[b"size"], _MAX_SIZE)
    if size and kind is not Kind.FILE:
        raise refused(path, f"it is a {kind.name.lower().replace('_', ' ')} with a content of {size} bytes")
    uid, gid = (
        _decimal(path, name, records[name.encode()], _MAX_ID) if name.encode() in records else _number(block[field])
        for name, field in (("uid", slice(108, 116)), ("gid", slice(116, 124)))
    )
    if not (0 <= uid <= _MAX_ID and 0 <= gid <= _MAX_ID):
        raise refused(path, f"its owner is {uid}:{gid}")
    mtime_ns = _time(path, records[b"mtime"]) if b"mtime" in records else _number(block[136:148]) * 10**9
    if abs(mtime_ns) > _MAX_TIME * 10**9:
        raise refused(path, f"its time is {mtime_ns // 10**9} seconds after 1970")
    link = records.get(b"linkpath") or _text(block[157:257])
    return Member(path, kind, size, _number(block[100:108]) & 0o777, uid, gid, mtime_ns, link)


def refused(path: bytes, why: str, *, hint: str = "") -> ArchiveRefused:
    """The error for an entry of an archive."""
    return ArchiveRefused(f"'{escaped(path)}' in the archive: {why}", hint=hint)


def _check_error(records: dict[bytes, bytes]) -> None:
    if ERROR_RECORD in records:
        raise TransferFailed(f"the guest could not send all: {escaped(records[ERROR_RECORD])}")


def _parse_records(data: bytes) -> dict[bytes, bytes]:
    """PAX records that count here. One with an empty value takes its key away, as POSIX has it."""
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        length = _RECORD_LENGTH.match(data, at)
        end = at + int(length[1]) if length else len(data) + 1
        start = length.end() if length else end
        key, equals, value = data[start : end - 1].partition(b"=")
        if not start < end <= len(data) or data[end - 1] != ord("\n") or not key or not equals:
            raise ArchiveRefused("the archive is damaged: an extended header cannot be read")
        if key.startswith(_SPARSE_RECORDS):
            raise ArchiveRefused("the archive has a sparse file, which it may not")
        if key in _KEPT_RECORDS:
            records[key] = value
        at = end
    return {key: value for key, value in records.items() if value}


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _number(field: bytes) -> int:
    """A number of a header: octal digits, or GNU's binary for what does not fit."""
    if field[0] in (_POSITIVE, _NEGATIVE):
        return int.from_bytes(field[1:], "big") - (256 ** (len(field) - 1) if field[0] == _NEGATIVE else 0)
    digits = _OCTAL.fullmatch(field)
    if digits is None:
        raise ArchiveRefused(f"the archive is damaged: '{escaped(field)}' in a header is no number")
    return int(digits[1] or b"0", 8)


def _decimal(path: bytes, name: str, value: bytes, limit: int) -> int:
    if not _DECIMAL.fullmatch(value) or int(value) > limit:
        raise refused(path, f"its {name} is {escaped(value)}")
    return int(value)


def _time(path: bytes, value: bytes) -> int:
    """Seconds with a fraction, in nanoseconds."""
    parts = _TIME.fullmatch(value)
    if parts is None:
        raise refused(path, f"its time is {escaped(value)}")
    nanoseconds = int(parts[2]) * 10**9 + int((parts[3] or b"")[:9].ljust(9, b"0"))
    return -nanoseconds if parts[1] else nanoseconds
