"""Files: sparse copies, atomic writes, removal, digests."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from squib.errors import DiskFull, SquibError
from squib.undo import Undo

_FICLONE = 0x40049409  # linux/fs.h
_BLOCK_BYTES = 64 << 10
_KEPT_BYTES = 256 << 20
_KEPT_SHARE = 20
"""What copies leave free on a disk: the smaller of the fixed amount and 1/20 of the disk."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Convert "no space left" and "quota exceeded" into `DiskFull`.

    The error names the directory and its free space.
    """
    try:
        yield
    except SquibError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(path) from error
        raise


def disk_full(path: Path) -> DiskFull:
    """Return the error for a full disk under ``path``."""
    while not path.exists():
        path = path.parent
    disk = os.statvfs(path)
    return DiskFull(
        f"no space left on the disk of {path} ({disk.f_bavail * disk.f_frsize >> 20} MiB free; "
        f"{_kept_bytes(disk) >> 20} MiB are kept for running VMs)",
        hint="free space: squib rm VM, squib image rm NAME; or use another disk: SQUIB_HOME=/other/disk/squib",
    )


def check_room(fd: int, size: int) -> None:
    """Check that ``size`` more bytes fit on the disk of an open file, and leave room for running VMs.

    A guest that writes to a full disk gets I/O errors, and may lose data. So no copy may ever fill it.

    Raises `OSError` (ENOSPC), as a write to a full disk does.
    """
    disk = os.fstatvfs(fd)
    if size + _kept_bytes(disk) > disk.f_bavail * disk.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _kept_bytes(disk: os.statvfs_result) -> int:
    return min(_KEPT_BYTES, disk.f_blocks * disk.f_frsize // _KEPT_SHARE)


def sparse_copy(source: Path, target: Path) -> None:
    """Copy a file's allocated blocks, or share them (reflink) if possible.

    ``target`` must not exist. On any error, a partly written target is removed.

    Raises `DiskFull`.
    """
    remove = Undo(lambda: target.unlink(missing_ok=True))
    with disk_errors(target.parent), source.open("rb") as src, target.open("xb") as dst, remove:
        try:
            fcntl.ioctl(dst.fileno(), _FICLONE, src.fileno())
        except OSError:
            check_room(dst.fileno(), data_bytes(src.fileno()))
            copy_file(src.fileno(), dst.fileno())


def link_or_copy(source: Path, target: Path) -> None:
    """Make ``target`` another name of a file that never changes, or a copy on another disk.

    Raises `DiskFull`, `OSError`.
    """
    try:
        target.hardlink_to(source)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP):
            raise
        sparse_copy(source, target)


def data_bytes(fd: int) -> int:
    """Return the space that a file takes on the disk."""
    return os.fstat(fd).st_blocks * 512


def copy_file(src: int, dst: int) -> None:
    """Copy a file's size and its data; holes stay holes. Both are file descriptors."""
    size = os.fstat(src).st_size
    os.ftruncate(dst, size)
    copy_extents(src, dst, 0, size)


def copy_extents(src: int, dst: int, start: int, stop: int) -> None:
    """Copy a file's data between two offsets. Holes are left out."""
    for offset, end in data_ranges(src, start, stop):
        os.lseek(dst, offset, os.SEEK_SET)
        while offset < end:
            sent = os.sendfile(dst, src, offset, end - offset)
            if sent == 0:
                raise OSError(errno.EIO, "the file became shorter while it was copied")
            offset += sent


def data_ranges(fd: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield the start and the end of each part of a file that is data, not a hole, between two offsets."""
    while start < stop:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        end = min(os.lseek(fd, start, os.SEEK_HOLE), stop)
        if start < end:
            yield start, end
        start = end


class OwnedFd:
    """A file descriptor that is closed with its last reference."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def __del__(self) -> None:
        os.close(self._fd)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises `OSError` for other kinds of files, because reading them could block.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return os.fdopen(fd, "rb")


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace the content of ``path`` atomically and durably.

    Readers, and a reboot after a power failure, find either the old content or the new, never a part of it.

    Raises `DiskFull`.
    """
    with disk_errors(path.parent):
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with Undo(lambda: Path(name).unlink(missing_ok=True)):
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                os.fchmod(file.fileno(), mode)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file, or the names in a directory, to the disk (fsync)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_directory(path: Path) -> None:
    """Flush a directory's names to the disk, for example after a rename."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_tree(path: Path) -> None:
    """Remove a file, or a directory with its content, if it exists.

    Symbolic links are not followed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Hash a file's content; return ``sha256:`` and the hex digest."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def sparse_sha256(path: Path) -> str:
    """Hash a file's size and nonzero blocks; return ``sparse-sha256:HEX``.

    Holes are not read, so an empty file system of 100 GiB takes a moment. A hole and a block of zeros are equal.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(size.to_bytes(8, "little"))
        offset = 0
        while offset < size:
            try:
                data = os.lseek(file.fileno(), offset, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # only a hole is left
                    break
                raise
            offset = max(offset, data - data % _BLOCK_BYTES)
            block = os.pread(file.fileno(), _BLOCK_BYTES, offset)
            if block != bytes(len(block)):
                digest.update(offset.to_bytes(8, "little"))
                digest.update(block)
            offset += _BLOCK_BYTES
    return f"sparse-sha256:{digest.hexdigest()}"
