"""Read an untrusted tar archive from a guest.

Python's ``tarfile`` is not used. It accepts sparse files, old formats and damaged headers, keeps every member in
memory, and relies on filters against path traversal that have had vulnerabilities. The agent and other PAX and
GNU writers use few header types. This reader supports those and rejects everything else.

Supported: ustar headers, PAX records (``x``), and GNU long names. In global PAX records (``g``), only `ERROR_RECORD` is
used.
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
"""The record that ends an archive which the agent could not complete (protocol/agent.md)."""

XATTR_RECORD = b"SCHILY.xattr."
"""The prefix of a record with an extended attribute, as GNU tar and bsdtar write it."""

BLOCK = 512
CHUNK = 1 << 18
MAX_DEPTH = 100
"""Maximum number of components in a member name, packing or unpacking. Each one is an open directory."""

_USER = b"user."
_MAX_XATTR_NAME = 255
_MAX_XATTR_VALUE = 1 << 16
_ZEROS = bytes(BLOCK)
_MAX_EXTENSION = 1 << 20
_MAX_EXTENSIONS = 8  # headers before one member
_MAX_PADDING = 1 << 20  # after the end marker
_MAX_SIZE = (1 << 63) - 1
_MAX_ID = (1 << 32) - 2  # chown(2) takes 2^32 - 1 as "unchanged"
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
    """The type of a member."""

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
    """An unvalidated archive entry.

    ``mode`` is the permission bits only; ``link`` is the target of a link.

    ``xattrs`` are the extended attributes of the ``user`` namespace; others are dropped.
    """

    path: bytes
    kind: Kind
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    link: bytes
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


class Readable(Protocol):
    """A source of archive bytes."""

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes, or ``b""`` at the end."""
        ...


class TarReader:
    """Iterate over the members of an archive.

    Read a file's `content` before you take the next member.
    """

    def __init__(self, source: Readable) -> None:
        self._input = _Input(source)
        self._left = 0

    def __iter__(self) -> Iterator[Member]:
        """Yield the members.

        Raises `ArchiveRefused`, or `TransferFailed` if the guest reports an error.
        """
        while (member := self._next()) is not None:
            self._left = member.size
            yield member
            assert not self._left
            self._input.exactly(-member.size % BLOCK)

    def content(self) -> Iterator[bytes]:
        """Yield the current member's content in pieces of up to 256 KiB."""
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
        raise ArchiveRefused(f"an archive entry has more than {_MAX_EXTENSIONS} extension headers")

    def _extension(self, size: int) -> bytes:
        if size > _MAX_EXTENSION:
            raise ArchiveRefused(f"an extension header has {size} bytes: the limit is {_MAX_EXTENSION}")
        return self._input.exactly(size + -size % BLOCK)[:size]

    def _finish(self) -> None:
        if self._input.exactly(BLOCK) != _ZEROS:
            raise ArchiveRefused("the archive has data after its end marker")
        self._input.only_zeros(_MAX_PADDING)


class _Input:
    """Buffered reads from the archive source."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._data = b""
        self._at = 0

    def some(self, limit: int) -> bytes:
        """Return 1 to ``limit`` bytes."""
        if self._at == len(self._data):
            self._data, self._at = self._source.read(CHUNK), 0
            if not self._data:
                raise ArchiveRefused("the archive is truncated")
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
        """Read to the end.

        Raise `ArchiveRefused` for a nonzero byte or more than ``limit`` bytes.
        """
        data = self._data[self._at :]
        while not data.strip(b"\0") and len(data) <= limit:
            limit -= len(data)
            data = self._source.read(CHUNK)
            if not data:
                return
        raise ArchiveRefused("the archive has data after its end marker")


def _check_header(block: bytes) -> int:
    """Validate a header and return its size field."""
    if block[257:265] not in (_POSIX, _GNU):
        raise ArchiveRefused("not a tar archive: a header is in neither POSIX nor GNU format")
    if _number(block[_CHECKSUM]) != sum(block) - sum(block[_CHECKSUM]) + 8 * ord(" "):
        raise ArchiveRefused("the archive is damaged: wrong header checksum")
    size = _number(block[124:136])
    if not 0 <= size <= _MAX_SIZE:
        raise ArchiveRefused(f"'{escaped(_text(block[:100]))}' in the archive: invalid size {size}")
    return size


def _make_member(block: bytes, size: int, records: dict[bytes, bytes]) -> Member:
    name = _text(block[:100])
    if block[257:265] == _POSIX and (prefix := _text(block[345:500])):
        name = prefix + b"/" + name
    path = records.get(b"path") or name
    kind = _KINDS.get(block[156:157])
    if kind is None:
        what = _REFUSED.get(block[156:157], f"unknown entry type '{escaped(block[156:157])}'")
        raise refused(path, what)
    if b"size" in records:
        size = _decimal(path, "size", records[b"size"], _MAX_SIZE)
    if size and kind is not Kind.FILE:
        raise refused(path, f"it is a {kind.name.lower().replace('_', ' ')} with {size} bytes of content")
    uid, gid = (
        _decimal(path, name, records[name.encode()], _MAX_ID) if name.encode() in records else _number(block[field])
        for name, field in (("uid", slice(108, 116)), ("gid", slice(116, 124)))
    )
    if not (0 <= uid <= _MAX_ID and 0 <= gid <= _MAX_ID):
        raise refused(path, f"invalid owner {uid}:{gid}")
    mtime_ns = _time(path, records[b"mtime"]) if b"mtime" in records else _number(block[136:148]) * 10**9
    if abs(mtime_ns) > _MAX_TIME * 10**9:
        raise refused(path, f"invalid modification time {mtime_ns // 10**9}")
    link = records.get(b"linkpath") or _text(block[157:257])
    xattrs = _xattrs(path, records) if kind in (Kind.FILE, Kind.DIRECTORY) else ()
    return Member(path, kind, size, _number(block[100:108]) & 0o777, uid, gid, mtime_ns, link, xattrs)


def _xattrs(path: bytes, records: dict[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
    found = []
    for key, value in records.items():
        if key.startswith(XATTR_RECORD):
            name = key.removeprefix(XATTR_RECORD)
            if not len(_USER) < len(name) <= _MAX_XATTR_NAME or b"\0" in name or len(value) > _MAX_XATTR_VALUE:
                raise refused(path, f"invalid extended attribute '{escaped(name)}' of {len(value)} bytes")
            found.append((name, value))
    return tuple(found)


def refused(path: bytes, why: str, *, hint: str = "") -> ArchiveRefused:
    """Return the error for an archive entry that is rejected."""
    return ArchiveRefused(f"'{escaped(path)}' in the archive: {why}", hint=hint)


def _check_error(records: dict[bytes, bytes]) -> None:
    if ERROR_RECORD in records:
        raise TransferFailed(f"the guest could not complete the archive: {escaped(records[ERROR_RECORD])}")


def _parse_records(data: bytes) -> dict[bytes, bytes]:
    """Parse PAX records and return the supported ones.

    POSIX: a record with an empty value deletes the key.
    """
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
            raise ArchiveRefused("the archive has a sparse file: sparse files are not supported")
        if key in _KEPT_RECORDS or key.startswith(XATTR_RECORD + _USER):
            records[key] = value
        at = end
    return {key: value for key, value in records.items() if value or key.startswith(XATTR_RECORD)}


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _number(field: bytes) -> int:
    """Parse a header number: octal digits, or GNU's binary format.

    Raises `ArchiveRefused` if it is neither.
    """
    if field[0] in (_POSITIVE, _NEGATIVE):
        return int.from_bytes(field[1:], "big") - (256 ** (len(field) - 1) if field[0] == _NEGATIVE else 0)
    digits = _OCTAL.fullmatch(field)
    if digits is None:
        raise ArchiveRefused(f"the archive is damaged: invalid number '{escaped(field)}' in a header")
    return int(digits[1] or b"0", 8)


def _decimal(path: bytes, name: str, value: bytes, limit: int) -> int:
    if not _DECIMAL.fullmatch(value) or int(value) > limit:
        raise refused(path, f"invalid {name} '{escaped(value)}'")
    return int(value)


def _time(path: bytes, value: bytes) -> int:
    """Parse decimal seconds and return nanoseconds."""
    parts = _TIME.fullmatch(value)
    if parts is None:
        raise refused(path, f"invalid modification time '{escaped(value)}'")
    nanoseconds = int(parts[2]) * 10**9 + int((parts[3] or b"")[:9].ljust(9, b"0"))
    return -nanoseconds if parts[1] else nanoseconds
