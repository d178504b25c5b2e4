"""Find a guest's memory in the process of a Firecracker: a process that maps memory as Firecracker does."""

import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from squib.drivers.firecracker.memory import find, low_bytes
from squib.errors import HostError
from squib.host import memory

MIB = 1 << 20
LOW_MIB = 4
VMM = """
import mmap, os, sys
path, order, *sizes = sys.argv[1:]
sizes, regions = [int(word) << 20 for word in sizes], {}
fd, flags = (os.open(path, os.O_RDONLY), 0) if path else (-1, mmap.MAP_ANONYMOUS)
for number in list(range(len(sizes)))[:: int(order)]:
    offset = sum(sizes[:number]) if path else 0
    prot, flags = mmap.PROT_READ | mmap.PROT_WRITE, flags | mmap.MAP_PRIVATE | 0x4000
    regions[number] = mmap.mmap(fd, sizes[number], flags=flags, prot=prot, offset=offset)
    regions[number][4096:4106] = b"region %03d" % number
    regions[number][8192]  # read only
regions[0][0xE0000 : 0xE0008] = b"RSD PTR "
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


Started = list[subprocess.Popen[bytes]]


def start(started: Started, path: Path | None, *sizes_mib: int, order: int = 1) -> int:
    """Start a process that maps a file, or anonymous memory, in regions of these sizes; return its pid."""
    argv = [sys.executable, "-ISc", VMM, str(path or ""), str(order), *map(str, sizes_mib)]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    started.append(process)
    assert process.stdout
    assert process.stdout.readline() == b"ready\n"
    return process.pid


def save(pid: int, size_mib: int, path: Path) -> bytes:
    with path.open("xb") as file:
        shared = memory.save(pid, size_mib, file.fileno(), functools.partial(find, low=LOW_MIB * MIB))
    shared.add_to(path)
    return path.read_bytes()


def regions_of(saved: bytes) -> list[int]:
    """Where the regions begin, in the order of their numbers."""
    assert saved.count(b"region ") == saved.count(b"region 000") + saved.count(b"region 001")
    return [saved.index(b"region %03d" % number) - 4096 for number in range(saved.count(b"region "))]


@pytest.mark.parametrize("size_mib", [3, LOW_MIB])
def test_memory_of_a_guest_that_has_booted_is_found(started: Started, tmp_path: Path, size_mib: int) -> None:
    saved = save(start(started, None, size_mib), size_mib, tmp_path / "saved")
    assert len(saved) == size_mib * MIB and regions_of(saved) == [0]
    assert (tmp_path / "saved").stat().st_blocks * 512 < MIB


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("high_mib", [1, LOW_MIB, 6])
def test_two_regions_are_saved_in_their_order(started: Started, tmp_path: Path, high_mib: int, order: int) -> None:
    pid = start(started, None, LOW_MIB, high_mib, order=order)
    saved = save(pid, LOW_MIB + high_mib, tmp_path / "saved")
    assert len(saved) == (LOW_MIB + high_mib) * MIB and regions_of(saved) == [0, LOW_MIB * MIB]


@pytest.mark.parametrize("sizes_mib", [(3,), (LOW_MIB, 2)])
def test_memory_of_a_file_is_found_and_whole(started: Started, tmp_path: Path, sizes_mib: tuple[int, ...]) -> None:
    (tmp_path / "memory").write_bytes(b"base" * (sum(sizes_mib) * MIB // 4))
    pid = start(started, tmp_path / "memory", *sizes_mib)
    (tmp_path / "memory").unlink()  # as the saved memory of a VM that was suspended
    saved = save(pid, sum(sizes_mib), tmp_path / "saved")
    assert regions_of(saved) == [0, LOW_MIB * MIB][: len(sizes_mib)]
    assert saved.count(b"base") > (sum(sizes_mib) * MIB - 4096) // 4


@pytest.mark.parametrize("sizes_mib", [(2,), (3, 3)])
def test_other_memory_than_the_guests_is_refused(started: Started, tmp_path: Path, sizes_mib: tuple[int, ...]) -> None:
    (tmp_path / "memory").write_bytes(bytes(MIB))
    for path in (None, tmp_path / "memory"):
        pid = start(started, path, *(sizes_mib if path is None else (1,)))
        with pytest.raises(HostError, match="as a guest's memory, not 3 MiB"):
            save(pid, 3, tmp_path / f"saved-{pid}")


def test_the_gap_for_devices_begins_where_the_version_has_it() -> None:
    assert [low_bytes(version) >> 20 for version in ((1, 10, 1), (1, 12, 0), (1, 13, 0), (1, 17, 0))] == [
        3328, 3328, 3072, 3072,
    ]  # fmt: skip
