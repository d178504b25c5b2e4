import io
import os
import tarfile
from pathlib import Path

import pytest

from squib.errors import InvalidArgument
from squib.images import rootfs
from squib.images.rootfs import Rootfs, RootfsFormat


def sized(*parts: tuple[int, bytes], size: int = 0x9000) -> bytes:
    data = bytearray(size)
    for offset, part in parts:
        data[offset : offset + len(part)] = part
    return bytes(data)


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("etc"))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (sized((0, b"hsqs")), RootfsFormat.SQUASHFS),
        (b"hsqs", RootfsFormat.SQUASHFS),
        (sized((0x438, b"\x53\xef")), RootfsFormat.EXT4),
        (sized((0x438, b"\x53\xef"), (0x1FE, b"\x55\xaa")), RootfsFormat.EXT4),  # a boot sector before it does no harm
    ],
)
def test_squashfs_and_ext4_are_recognised(tmp_path: Path, data: bytes, expected: RootfsFormat) -> None:
    path = tmp_path / "rootfs"
    path.write_bytes(data)
    assert rootfs.inspect(path) == Rootfs(path, expected)


@pytest.mark.parametrize(
    ("data", "what", "hint"),
    [
        (b"\x1f\x8b\x08", "gzip", "gunzip"),
        (b"\xfd7zXZ\0", "xz", "xzcat"),
        (b"\x28\xb5\x2f\xfd", "zstd", "zstdcat"),
        (b"BZh9", "bzip2", "bzcat"),
        (b"QFI\xfb\0\0\0\3", "qcow2", "qemu-img convert"),
        (tar(), "tar archive", "sqfstar"),
        (sized((0x8001, b"CD001")), "ISO 9660", "mount"),
        (sized((0x1FE, b"\x55\xaa")), "partitions", "partition"),
        (sized((0x200, b"EFI PART"), (0x1FE, b"\x55\xaa")), "partitions", "partition"),
        (b"PK\x03\x04", "zip", "unpack"),
        (b"\x7fELF\x02", "ELF", "--kernel"),
        (b"hello", "not a squashfs or ext4", "sqfstar"),
        (b"", "not a squashfs or ext4", "sqfstar"),
    ],
)
def test_anything_else_is_refused_and_the_hint_converts_it(tmp_path: Path, data: bytes, what: str, hint: str) -> None:
    path = tmp_path / "rootfs"
    path.write_bytes(data)
    with pytest.raises(InvalidArgument, match=what) as caught:
        rootfs.inspect(path)
    assert str(path) in caught.value.message
    assert hint in caught.value.hint


def test_a_directory_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="is a directory") as caught:
        rootfs.inspect(tmp_path)
    assert f"tar -C {tmp_path}" in caught.value.hint
    with pytest.raises(InvalidArgument, match="No such file"):
        rootfs.inspect(tmp_path / "nothing")


def test_a_pipe_is_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidArgument, match="not a regular file"):
        rootfs.inspect(tmp_path / "pipe")
