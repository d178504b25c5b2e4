"""Pack a directory or a ``docker export`` tar into a root filesystem."""

from __future__ import annotations

import asyncio
import bz2
import contextlib
import errno
import gzip
import lzma
import os
import secrets
import shutil
import zlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from io import BufferedIOBase
from pathlib import Path

from squib.errors import InvalidArgument, SquibError, ToolFailed
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
_MODE = 0o644
_COMPRESSION = ("-comp", "lz4")


async def pack_rootfs(source: Path, target: Path) -> Rootfs:
    """Pack a directory or a tar into the new squashfs ``target``.

    The tar is plain, or compressed with gzip, bzip2, xz or zstd. Owners, modes, links and times are kept as far as this
    user may read them. An existing ``target`` is not touched. A failure leaves no file. Neither does SIGKILL: the tools
    end with this process, and the file has no name until it is complete.

    Raises `InvalidArgument`, `ToolFailed`, `DependencyMissing`, `DiskFull`.
    """
    try:
        if target.exists() or target.is_symlink():
            raise FileExistsError(errno.EEXIST, "File exists")
        with disk_errors(target.parent), _new_file(target) as file:
            if source.is_dir():
                options = (*_COMPRESSION, "-noappend", "-no-progress", "-quiet")
                await _run(["mksquashfs", source.absolute(), _path_of(file), *options], target=file)
            else:
                await _pack_tar(source, file)
            if not os.fstat(file).st_size:
                raise ToolFailed(f"packing {source} wrote no squashfs")
    except SquibError:
        raise
    except FileExistsError as error:
        raise InvalidArgument(f"{target} already exists", hint=f"choose another name, or: rm {target}") from error
    except OSError as error:
        raise InvalidArgument(f"{target} cannot be written: {error.strerror}") from error
    return inspect(target)


@contextlib.contextmanager
def _new_file(target: Path) -> Iterator[int]:
    """Create a file that is named ``target`` when the block succeeds.

    Until then it has no name, so the kernel removes it if this process is killed. If the file system does not support
    unnamed files, it has a temporary name.

    Raises `OSError`, `FileExistsError` if ``target`` exists by then.
    """
    partial = None
    try:
        file = os.open(target.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, _MODE)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
        partial = target.with_name(f".squib-{secrets.token_hex(8)}")
        file = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, _MODE)
    try:
        yield file
        with _open_directory(target.parent) as folder:  # os.link follows the link in /proc only with a directory
            os.link(partial or _path_of(file), target.name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.close(file)
        if partial:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _open_directory(path: Path) -> Iterator[int]:
    folder = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield folder
    finally:
        os.close(folder)


def _path_of(file: int) -> Path:
    """Return the path that reopens an inherited file in another process."""
    return Path(f"/proc/self/fd/{file}")


async def _run(
    argv: Sequence[str | Path], *, target: int | None = None, stdin: int | None = None, stdout: int | None = None
) -> None:
    """Run a tool that ends with this process.

    It inherits the open file ``target``.
    """
    pass_fds = () if target is None else (target,)
    await proc.run(argv, stdin=stdin, stdout=stdout, pass_fds=pass_fds, ends_with_caller=True)


async def _pack_tar(source: Path, target: int) -> None:
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
    await _run(["zstd", "-dc"], stdin=source, stdout=pipe)


async def _squash_stream(unpack: Callable[[int], Awaitable[object]], target: int) -> None:
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


async def _squash(tar: int, target: int) -> None:
    argv: list[str | Path] = ["sqfstar", *_COMPRESSION, "-root-mode", "755", "-force", _path_of(target)]
    await _run(argv, stdin=tar, target=target)
