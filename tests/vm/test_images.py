"""Root filesystems of a user's own, packed from Python and booted."""

import bz2
import gzip
import io
import lzma
import subprocess
import tarfile
from pathlib import Path

import pytest

from squib import VM, Images, InvalidArgument, NoShell, NotFound, ToolFailed
from squib.paths import Home

FOLDERS = ("bin", "dev", "etc", "proc", "run", "sys", "tmp")
COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: zstd(data),
}


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-q"], input=data, capture_output=True, check=True).stdout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name in FOLDERS:
        (root / name).mkdir(parents=True)
    (root / "etc" / "passwd").write_text("root:x:0:0::/root:/bin/sh\nguest:x:1000:1000::/:/bin/sh\n")
    return root


def boots(rootfs: Path) -> None:
    with VM(rootfs_path=rootfs) as vm, pytest.raises(NoShell):
        vm.run("true")


def test_a_directory_is_packed_and_boots(home: Home, tree: Path, tmp_path: Path) -> None:
    target = tmp_path / "rootfs.squashfs"
    assert Images().pack(tree, target) == target
    boots(target)
    with pytest.raises(InvalidArgument, match="already exists"):
        Images().pack(tree, target)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_tar_is_packed(home: Home, tree: Path, tmp_path: Path, suffix: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        archive.add(tree, arcname=".")
    source, target = tmp_path / f"rootfs.tar{suffix}", tmp_path / "rootfs.squashfs"
    source.write_bytes(COMPRESS[suffix](buffer.getvalue()))
    Images().pack(source, target)
    listing = subprocess.run(["unsquashfs", "-ll", target], capture_output=True, text=True, check=True).stdout
    assert "squashfs-root/etc/passwd" in listing
    if suffix == "":
        boots(target)


def test_what_cannot_be_packed_leaves_nothing(home: Home, tmp_path: Path) -> None:
    target = tmp_path / "rootfs.squashfs"
    (tmp_path / "text").write_text("no tar")
    (tmp_path / "broken.tar.gz").write_bytes(b"\x1f\x8b\x08 broken")
    for source, error in (("nosuch", InvalidArgument), ("text", InvalidArgument), ("broken.tar.gz", ToolFailed)):
        with pytest.raises(error):
            Images().pack(tmp_path / source, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.tar.gz", "text"]


def test_images_are_listed_built_and_kept_while_they_are_used(home: Home) -> None:
    images = Images()
    built = images.build("base")
    assert [image.digest for image in images.list() if image.name == "base"] == [built.digest]
    with pytest.raises(NotFound, match="nosuch"):
        images.build("nosuch")
