"""A user's own root filesystem (``--rootfs PATH``)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from squib.errors import InvalidArgument
from squib.host.files import open_regular


class RootfsFormat(StrEnum):
    SQUASHFS = "squashfs"
    EXT4 = "ext4"


@dataclass(frozen=True)
class Rootfs:
    """A file that a guest can mount as its read-only base."""

    path: Path
    format: RootfsFormat


_HEAD_BYTES = 0x8800
_TO_SQUASHFS = "sqfstar -comp lz4 rootfs.squashfs"

_FOREIGN: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\x1f\x8b", "gzip data", f"a tar.gz: gunzip < FILE | {_TO_SQUASHFS}; else gunzip FILE first"),
    (0, b"\xfd7zXZ\0", "xz data", f"a tar.xz: xzcat < FILE | {_TO_SQUASHFS}; else unxz FILE first"),
    (0, b"\x28\xb5\x2f\xfd", "zstd data", f"a tar.zst: zstdcat < FILE | {_TO_SQUASHFS}; else unzstd FILE first"),
    (0, b"BZh", "bzip2 data", f"a tar.bz2: bzcat < FILE | {_TO_SQUASHFS}; else bunzip2 FILE first"),
    (
        0,
        b"QFI\xfb",
        "a qcow2 disk",
        "qemu-img convert -O raw FILE disk.raw, then take the partition's file system out of it",
    ),
    (
        0,
        b"KDMV",
        "a VMDK disk",
        "qemu-img convert -O raw FILE disk.raw, then take the partition's file system out of it",
    ),
    (0, b"PK\x03\x04", "a zip archive", f"unpack it and: tar -C FOLDER -c . | {_TO_SQUASHFS}"),
    (0, b"\x7fELF", "an ELF program or kernel", "a kernel is given with --kernel"),
    (0, b"XFSB", "an XFS file system", f"mount it and: tar -C MOUNTPOINT -c . | {_TO_SQUASHFS}"),
    (0, b"070701", "a cpio archive", f"unpack it and: tar -C FOLDER -c . | {_TO_SQUASHFS}"),
    (0x101, b"ustar", "a tar archive", f"{_TO_SQUASHFS} < FILE"),
    (0x8001, b"CD001", "an ISO 9660 image", f"mount it and: tar -C MOUNTPOINT -c . | {_TO_SQUASHFS}"),
    (0x200, b"EFI PART", "a disk with partitions", "take the partition with the root file system out of it"),
    (
        0x1FE,
        b"\x55\xaa",
        "a disk with partitions or a kernel",
        "take the partition with the root file system out of it",
    ),
)


def inspect(path: Path) -> Rootfs:
    """Recognise a root filesystem file.

    Raises `InvalidArgument` if it is neither squashfs nor ext4.
    """
    try:
        if path.is_dir():
            raise InvalidArgument(
                f"{path} is a directory, not a root filesystem", hint=f"tar -C {path} -c . | {_TO_SQUASHFS}"
            )
        with open_regular(path) as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise InvalidArgument(f"root filesystem {path} cannot be read: {error.strerror}") from error
    if head.startswith(b"hsqs"):
        return Rootfs(path, RootfsFormat.SQUASHFS)
    if head[0x438:0x43A] == b"\x53\xef":
        return Rootfs(path, RootfsFormat.EXT4)
    for offset, magic, what, hint in _FOREIGN:
        if head[offset : offset + len(magic)] == magic:
            raise InvalidArgument(
                f"{path} is {what}, not a squashfs or ext4 file system", hint=hint.replace("FILE", str(path))
            )
    raise InvalidArgument(
        f"{path} is not a squashfs or ext4 file system",
        hint=f"make one of a directory: tar -C DIR -c . | {_TO_SQUASHFS}",
    )
