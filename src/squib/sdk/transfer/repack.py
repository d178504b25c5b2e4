"""Rewrite an untrusted archive on its way from one guest to another.

The destination unpacks the archive as root. So nothing of the source's headers is forwarded as it is: a second reader
might understand them in another way than the first.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterator

from squib.sdk.transfer.chunks import ThreadReader, in_thread
from squib.sdk.transfer.pack import encode_header
from squib.sdk.transfer.tar import BLOCK, CHUNK, Readable, TarReader

_END = bytes(2 * BLOCK)


async def repacked(archive: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Yield ``archive`` without privileges: see `repack`."""
    reader = ThreadReader(archive)
    pieces = in_thread(repack(reader))
    try:
        async for piece in pieces:
            yield piece
    finally:
        reader.cancel()
        await pieces.aclose()
        await archive.aclose()


def repack(archive: Readable) -> Iterator[bytes]:
    """Yield a rewritten copy of an untrusted archive, in 256 KiB pieces.

    Files, directories and links are kept, with permission bits, owners, times and extended attributes of the ``user``
    namespace; set-id bits, the sticky bit and other attributes are not. Blocks.

    Raises `ArchiveRefused` for devices and FIFOs, as a download does, and `TransferFailed` if the guest reports an
    error.
    """
    reader = TarReader(archive)
    gathered = bytearray()
    for member in reader:
        gathered += encode_header(
            os.fsdecode(member.path),
            member.kind.value,
            mode=member.mode,
            owner=(member.uid, member.gid),
            mtime_ns=member.mtime_ns,
            size=member.size,
            link=os.fsdecode(member.link),
            xattrs=member.xattrs,
        )
        for piece in reader.content():
            gathered += piece
            if len(gathered) >= CHUNK:
                yield bytes(gathered)
                gathered.clear()
        gathered += bytes(-member.size % BLOCK)
    yield bytes(gathered) + _END
