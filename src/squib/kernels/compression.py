"""Decompression of kernels and modules."""

from __future__ import annotations

import lzma
import zlib
from pathlib import Path

from squib.errors import InvalidArgument, ToolFailed
from squib.host import proc

_XZ = b"\xfd7zXZ\0"
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_LZ4_LEGACY = b"\x02\x21\x4c\x18"


def decompress(data: bytes, *, source: Path) -> bytes:
    """Decompress xz, gzip, zstd or lz4 data, recognised by its first bytes.

    Return other data unchanged.

    zstd and lz4 run the tools of those names. ``source`` is for messages.

    Raises `InvalidArgument` for damaged data, `DependencyMissing`.
    """
    try:
        if data.startswith(_XZ):
            return _finished(lzma.LZMADecompressor(), data)
        if data.startswith(_GZIP):
            return _finished(zlib.decompressobj(wbits=31), data)
        if data.startswith(_ZSTD):
            return proc.pipe_through(["zstd", "--decompress", "--stdout", "--quiet"], data)
        if data.startswith(_LZ4_LEGACY):
            return proc.pipe_through(["lz4", "--decompress", "--stdout", "--quiet"], data)
    except (lzma.LZMAError, zlib.error, EOFError) as error:
        raise InvalidArgument(f"{source} is damaged: {error}") from error
    except ToolFailed as error:
        raise InvalidArgument(f"{source} is damaged: {error.detail or error.message}") from error
    return data


def _finished(decompressor: lzma.LZMADecompressor | zlib._Decompress, data: bytes) -> bytes:
    """Decompress one stream, and ignore the bytes after it.

    In a kernel they are its decompressed size.

    Raises `EOFError` if the data is truncated.
    """
    plain = decompressor.decompress(data)
    if not decompressor.eof:
        raise EOFError("the data is truncated")
    return plain
