"""A guest's memory: what is written of it, for memory that was fresh and memory that was mapped privately."""

import errno
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from squib.errors import HostError
from squib.host import files, memory
from squib.host.files import OwnedFd

MIB = 1 << 20
SIZE_MIB = 16
GUEST = """
import mmap, os, sys
fd, flags, maps, zeros = int(sys.argv[1]), getattr(mmap, sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
guests = [mmap.mmap(fd, 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE) for _ in range(maps)]
if zeros:
    guests[0][zeros * 4096 : (zeros + 1) * 4096] = bytes(4096)
for page in map(int, sys.argv[5:]):
    guests[0][page * 4096 : page * 4096 + 4] = b"mine"
guests[0][8 * 4096]  # read, so present, but not written
print("ready", flush=True)
sys.stdin.read()
"""


class Guest:
    """A process that maps a memfd as a VMM does, and has written to some of its pages."""

    def __init__(self, fd: int, flags: str, pages: list[int], maps: int = 1, zeros: int = 0) -> None:
        argv = [sys.executable, "-ISc", GUEST, str(fd), flags, str(maps), str(zeros), *map(str, pages)]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[fd])
        assert self.process.stdout
        assert self.process.stdout.readline() == b"ready\n"
        os.close(fd)

    def save(self, path: Path, size_mib: int = SIZE_MIB) -> bytes:
        with path.open("xb") as file:
            self.shared = memory.save(self.process.pid, size_mib, file.fileno())
        return path.read_bytes()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def filled(source: Path) -> int:
    """A sealed memfd with the content of a file."""
    memfd = OwnedFd(memory.fresh(source.stat().st_size))
    memory.fill(memfd, source)
    return os.dup(memfd.fileno())


@pytest.fixture
def guests() -> Iterator[list[Guest]]:
    started: list[Guest] = []
    yield started
    for guest in started:
        guest.end()


def page(content: bytes, number: int) -> bytes:
    return content[number * 4096 : number * 4096 + 4]


def test_of_fresh_memory_all_that_was_written_is_saved(guests: list[Guest], tmp_path: Path) -> None:
    guests.append(Guest(memory.fresh(SIZE_MIB << 20), "MAP_SHARED", [0, 100, 4095]))
    saved = guests[0].save(tmp_path / "saved")
    assert len(saved) == SIZE_MIB * MIB
    assert [page(saved, number) for number in (0, 100, 4095)] == [b"mine"] * 3
    assert saved.count(b"mine") == 3
    assert (tmp_path / "saved").stat().st_blocks * 512 < MIB


def test_of_a_clones_memory_only_its_own_pages_are_saved(guests: list[Guest], tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"base" * (SIZE_MIB * MIB // 4))
    guests.append(Guest(filled(source), "MAP_PRIVATE", [1, 2, 4095]))
    saved = guests[0].save(tmp_path / "saved")
    assert len(saved) == SIZE_MIB * MIB
    assert [page(saved, number) for number in (0, 1, 2, 8, 4095)] == [bytes(4), b"mine", b"mine", bytes(4), b"mine"]
    assert saved[1 * 4096 + 4 : 2 * 4096] == b"base" * 1023
    assert source.read_bytes().count(b"base") == SIZE_MIB * MIB // 4

    guests[0].end()  # the pages that it shared can still be added
    guests[0].shared.add_to(tmp_path / "saved")
    whole = (tmp_path / "saved").read_bytes()
    assert [page(whole, number) for number in (0, 1, 2, 8, 4095)] == [b"base", b"mine", b"mine", b"base", b"mine"]
    assert whole.count(b"base") + whole.count(b"mine") == SIZE_MIB * MIB // 4


def test_pages_of_zeros_that_a_clone_has_written_stay_zeros(guests: list[Guest], tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"base" * (SIZE_MIB * MIB // 4))
    guests.append(Guest(filled(source), "MAP_PRIVATE", [], zeros=7))
    guests[0].save(tmp_path / "saved")
    guests[0].shared.add_to(tmp_path / "saved")
    assert page((tmp_path / "saved").read_bytes(), 7) == bytes(4)


def test_a_filled_memory_cannot_be_changed(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"base" * 1024)
    fd = filled(tmp_path / "source")
    for change in (
        lambda: os.write(fd, b"x"),
        lambda: os.ftruncate(fd, 0),
        lambda: mmap.mmap(fd, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_WRITE),
    ):
        with pytest.raises(PermissionError):
            change()
    os.close(fd)


@pytest.mark.parametrize(("size_mib", "maps"), [(SIZE_MIB + 1, 1), (SIZE_MIB - 1, 1), (SIZE_MIB, 2)])
def test_a_process_with_other_memory_than_its_guest_should_have_is_refused(
    guests: list[Guest], tmp_path: Path, size_mib: int, maps: int
) -> None:
    guests.append(Guest(memory.fresh(SIZE_MIB << 20), "MAP_SHARED", [0], maps))
    with pytest.raises(HostError, match=f"maps {SIZE_MIB} MiB.* as a guest's memory, not {size_mib} MiB"):
        guests[0].save(tmp_path / "saved", size_mib)
    assert (tmp_path / "saved").stat().st_size == 0


def test_a_process_that_is_gone_cannot_be_saved(guests: list[Guest], tmp_path: Path) -> None:
    guests.append(Guest(memory.fresh(SIZE_MIB << 20), "MAP_SHARED", [0]))
    guests[0].end()
    with pytest.raises(HostError, match="cannot be read"):
        guests[0].save(tmp_path / "saved")


def test_a_write_that_is_cut_short_is_continued(
    guests: list[Guest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that is nearly full."""
    source = tmp_path / "source"
    source.write_bytes(bytes(SIZE_MIB * MIB))
    guests.append(Guest(filled(source), "MAP_PRIVATE", [1, 2, 3]))
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:5000], offset))
    saved = guests[0].save(tmp_path / "saved")
    assert [page(saved, number) for number in (1, 2, 3)] == [b"mine"] * 3


def test_a_full_disk_is_no_fault_of_the_process(
    guests: list[Guest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    guests.append(Guest(memory.fresh(SIZE_MIB << 20), "MAP_SHARED", [0]))
    monkeypatch.setattr(memory, "copy_file", full)
    with pytest.raises(OSError, match="No space") as caught:
        guests[0].save(tmp_path / "saved")
    assert not isinstance(caught.value, HostError)


@pytest.mark.parametrize("mode", ["MAP_SHARED", "MAP_PRIVATE"])
def test_a_memory_that_would_fill_the_disk_is_not_written(
    guests: list[Guest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """A guest whose disk is on a full one gets I/O errors, so no copy fills it, not even for a moment."""
    guests.append(Guest(memory.fresh(SIZE_MIB << 20), mode, [0]))
    monkeypatch.setattr(files, "_kept_bytes", lambda disk: disk.f_bavail * disk.f_frsize - 1)
    with pytest.raises(OSError, match="No space"):
        guests[0].save(tmp_path / "saved")
    assert (tmp_path / "saved").stat().st_blocks == 0
