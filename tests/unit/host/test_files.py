import os
from pathlib import Path

import pytest

from squib.errors import DiskFull
from squib.host import files


def write_sparse(path: Path, size: int, pieces: dict[int, bytes]) -> None:
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in pieces.items():
            file.seek(offset)
            file.write(data)


def test_holes_and_zeros_have_the_same_sparse_digest(tmp_path: Path) -> None:
    pieces = {5: b"first", 300_000: b"second"}
    write_sparse(tmp_path / "sparse", 1 << 20, pieces)
    write_sparse(tmp_path / "dense", 1 << 20, {0: bytes(1 << 20)} | pieces)
    assert (tmp_path / "sparse").stat().st_blocks < (tmp_path / "dense").stat().st_blocks
    assert files.sparse_sha256(tmp_path / "sparse") == files.sparse_sha256(tmp_path / "dense")


@pytest.mark.parametrize(
    ("size", "pieces"),
    [
        ((1 << 20) + 1, {5: b"first"}),
        (1 << 20, {6: b"first"}),
        (1 << 20, {5: b"First"}),
        (1 << 20, {5 + (64 << 10): b"first"}),
        (1 << 20, {5: b"first", (1 << 20) - 1: b"x"}),
        (0, {}),
    ],
)
def test_another_size_place_or_byte_has_another_sparse_digest(
    tmp_path: Path, size: int, pieces: dict[int, bytes]
) -> None:
    write_sparse(tmp_path / "one", 1 << 20, {5: b"first"})
    write_sparse(tmp_path / "other", size, pieces)
    assert files.sparse_sha256(tmp_path / "one") != files.sparse_sha256(tmp_path / "other")


def test_the_holes_of_a_large_file_are_not_read(tmp_path: Path) -> None:
    write_sparse(tmp_path / "large", 1 << 42, {1 << 41: b"middle"})  # reading it would take an hour
    assert files.sparse_sha256(tmp_path / "large").startswith("sparse-sha256:")


def test_a_file_is_replaced_with_its_mode_and_flushed_with_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[Path] = []
    real = os.fsync

    def note(fd: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{fd}").resolve())
        real(fd)

    monkeypatch.setattr(os, "fsync", note)
    path = tmp_path / "file"
    path.write_bytes(b"old")
    files.write_atomic(path, b"new", mode=0o640)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o640
    written, directory = flushed
    assert written.parent == tmp_path
    assert directory == tmp_path
    assert list(tmp_path.iterdir()) == [path]


def test_a_copy_leaves_room_for_vms_that_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest whose disk is on a full one gets I/O errors, so no copy fills it, not even for a moment."""
    write_sparse(tmp_path / "file", 1 << 30, {5: b"first"})
    disk = os.statvfs(tmp_path)
    monkeypatch.setattr(files, "_kept_bytes", lambda _: disk.f_bavail * disk.f_frsize - (1 << 20))
    monkeypatch.setattr(files, "_FICLONE", 0)
    files.sparse_copy(tmp_path / "file", tmp_path / "copy")  # one block
    write_sparse(tmp_path / "large", 1 << 30, {0: bytes(range(256)) * 8192})
    written = []
    monkeypatch.setattr(files, "copy_file", lambda *_: written.append("copied"))
    with pytest.raises(DiskFull, match=r"no space left on the disk of .* are kept for running VMs"):
        files.sparse_copy(tmp_path / "large", tmp_path / "other")
    assert (written, (tmp_path / "other").exists()) == ([], False)
