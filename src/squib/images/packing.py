"""Making a root filesystem of what a user has: a directory, or a tar such as ``docker export`` writes."""

from __future__ import annotations

import asyncio
import os
import secrets
from pathlib import Path

from squib.errors import InvalidArgument, ToolFailed
from squib.host import proc
from squib.host.files import disk_errors, open_regular
from squib.images.rootfs import Rootfs, inspect

_DECOMPRESSORS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_TAR_MAGIC_OFFSET = 0x101
_HEAD_BYTES = 512
_COMPRESSION = ("-comp", "lz4")


async def pack_rootfs(source: Path, target: Path) -> Rootfs:
    """Pack a directory or a tar (plain, or compressed with gzip, bzip2, xz or zstd) into the new squashfs ``target``.

    Owners, modes, links and times are kept, as far as this user may read them. A ``target`` that exists is not touched.
    Raises `InvalidArgument`, `ToolFailed`, `DependencyMissing`, `DiskFull`; nothing is left then.
    """
    if target.exists() or target.is_symlink():
        raise InvalidArgument(f"{target} exists already", hint=f"choose another name, or: rm {target}")
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with disk_errors(target.parent):
            if source.is_dir():
                options = (*_COMPRESSION, "-noappend", "-no-progress", "-quiet")
                await proc.run(["mksquashfs", source.absolute(), partial.absolute(), *options])
            else:
                await _pack_tar(source, partial)
            if not partial.exists():
                raise ToolFailed(f"{source} was packed into nothing")
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
        os.lseek(file.fileno(), 0, os.SEEK_SET)  # of the open file, which the tools inherit
        tool = next((tool for magic, tool in _DECOMPRESSORS.items() if head.startswith(magic)), None)
        if tool is not None:
            await _decompress_into(tool, file.fileno(), target)
        elif head[_TAR_MAGIC_OFFSET : _TAR_MAGIC_OFFSET + 5] == b"ustar":
            await _squash(file.fileno(), target)
        else:
            raise InvalidArgument(f"{source} is neither a directory nor a tar", hint="docker export NAME > rootfs.tar")


async def _decompress_into(tool: str, source: int, target: Path) -> None:
    read_end, write_end = os.pipe()

    async def decompress() -> None:
        try:
            await proc.run([tool, "-dc"], stdin=source, stdout=write_end)
        finally:
            os.close(write_end)

    async def squash() -> None:
        try:
            await _squash(read_end, target)
        finally:
            os.close(read_end)

    results = await asyncio.gather(decompress(), squash(), return_exceptions=True)
    for failed in filter(None, results):
        raise failed


async def _squash(tar: int, target: Path) -> None:
    await proc.run(["sqfstar", *_COMPRESSION, "-root-mode", "755", target.absolute()], stdin=tar)
