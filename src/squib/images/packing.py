"""Packing a user's directory, or a tar such as ``docker export`` writes, into a root filesystem."""

from __future__ import annotations

import asyncio
import bz2
import gzip
import lzma
import os
import secrets
import shutil
import zlib
from collections.abc import Awaitable, Callable
from io import BufferedIOBase
from pathlib import Path

from squib.errors import InvalidArgument, ToolFailed
from squib.host import proc
from squib.host.files import disk_errors, open_regular
from squib.images.rootfs import Rootfs, inspect

_OPENERS: dict[bytes, Callable[[Path], BufferedIOBase]] = {
    b"\x1f\x8b": gzip.GzipFile,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
}
_ZSTD = b"\x28\xb5\x2f\xfd"
_CHUNK_BYTES = 1 << 20
_TAR_MAGIC_OFFSET = 0x101
_HEAD_BYTES = 512
_COMPRESSION = ("-comp", "lz4")


async def pack_rootfs(source: Path, target: Path) -> Rootfs:
    """Pack a directory or a tar (plain, gzip, bzip2, xz or zstd) into the new squashfs ``target``.

    Owners, modes, links and times are kept as far as this user may read them. An existing ``target`` is not touched.
    Raises `InvalidArgument`, `ToolFailed`, `DependencyMissing`, `DiskFull`; a failure leaves nothing.
    """
    if target.exists() or target.is_symlink():
        raise InvalidArgument(f"{target} already exists", hint=f"choose another name, or: rm {target}")
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with disk_errors(target.parent):
            if source.is_dir():
                options = (*_COMPRESSION, "-noappend", "-no-progress", "-quiet")
                await proc.run(["mksquashfs", source.absolute(), partial.absolute(), *options])
            else:
                await _pack_tar(source, partial)
            if not partial.exists():
                raise ToolFailed(f"packing {source} wrote no squashfs")
            partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return inspect(target)


async def _pack_tar(source: Path, target: Path) -> None:
    try:
        file = open_regular(source)
    except OSError as error:
        raise InvalidArgument(f"{source} cannot be read: {error.strerror}") from error
    with file:
        head = file.read(_HEAD_BYTES)
        os.lseek(file.fileno(), 0, os.SEEK_SET)  # the tools inherit the offset of the open file
        unpack = next((opener for magic, opener in _OPENERS.items() if head.startswith(magic)), None)
        if unpack is not None:
            await _squash_stream(lambda pipe: asyncio.to_thread(_unpack, unpack, source, pipe), target)
        elif head.startswith(_ZSTD):
            await _squash_stream(lambda pipe: _unpack_zstd(file.fileno(), pipe), target)
        elif head[_TAR_MAGIC_OFFSET : _TAR_MAGIC_OFFSET + 5] == b"ustar":
            await _squash(file.fileno(), target)
        else:
            raise InvalidArgument(f"{source} is neither a directory nor a tar", hint="docker export NAME > rootfs.tar")


def _unpack(opener: Callable[[Path], BufferedIOBase], source: Path, pipe: int) -> None:
    try:
        with opener(source) as packed, open(pipe, "wb", closefd=False) as tar:
            shutil.copyfileobj(packed, tar, _CHUNK_BYTES)
    except BrokenPipeError:
        return  # the reader reports its own error
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise ToolFailed(f"{source} is damaged: {error}") from error


async def _unpack_zstd(source: int, pipe: int) -> None:
    await proc.run(["zstd", "-dc"], stdin=source, stdout=pipe)


async def _squash_stream(unpack: Callable[[int], Awaitable[object]], target: Path) -> None:
    """Squash the tar that ``unpack`` writes to a pipe."""
    read_end, write_end = os.pipe()

    async def write() -> None:
        try:
            await unpack(write_end)
        finally:
            os.close(write_end)

    async def read() -> None:
        try:
            await _squash(read_end, target)
        finally:
            os.close(read_end)

    results = await asyncio.gather(write(), read(), return_exceptions=True)
    for failed in filter(None, results):
        raise failed


async def _squash(tar: int, target: Path) -> None:
    await proc.run(["sqfstar", *_COMPRESSION, "-root-mode", "755", target.absolute()], stdin=tar)
