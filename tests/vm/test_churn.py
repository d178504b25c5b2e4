"""Many clones, one after the other: the engine and its state directory stay as they are."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from squib import VM
from squib.paths import Home
from tests.processes import until
from tests.vm.conftest import engine_pids

CLONES = int(os.environ.get("SQUIB_TEST_CHURN", "20"))
"""200 take five minutes with TCG on two CPUs."""
_WARM_UP = 10
_MAX_GROWTH_KIB = 8 << 10
_MAX_DISK_BYTES = 8 << 20
"""SQLite lets the database's journal grow to 4 MiB."""


def rss_kib(pid: int) -> int:
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1])


def descriptors(pid: int) -> list[str]:
    """What the engine has open, without the numbers of sockets and pipes."""
    return sorted(os.readlink(fd).partition("[")[0] for fd in Path(f"/proc/{pid}/fd").iterdir())  # noqa: PTH115


def on_disk(home: Home) -> dict[str, int]:
    """Files and how much space they take, in bytes."""
    return {str(path): path.lstat().st_blocks * 512 for path in home.root.rglob("*")}


def churn(count: int) -> None:
    def live(number: int) -> None:
        with VM() as vm:
            assert vm.run(f"echo {number}").stdout == f"{number}\n"

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(live, range(count)))


def test_clones_that_were_deleted_leave_nothing_in_the_engine(home: Home) -> None:
    with VM(name="stays"):  # so that the engine stays too
        churn(_WARM_UP)
        [engine] = engine_pids(home)
        memory, opened, disk = rss_kib(engine), descriptors(engine), on_disk(home)
        churn(CLONES)
        assert engine_pids(home) == [engine]
        until(lambda: len(descriptors(engine)) <= len(opened), "descriptors stay open", within_s=15)
        grown = rss_kib(engine) - memory
        larger = {path: size for path, old in on_disk(home).items() if (size := old - disk.get(path, 0))}
        print(f"{CLONES} clones: {grown} KiB more memory, {sum(larger.values())} bytes more on the disk: {larger}")
        assert grown < _MAX_GROWTH_KIB
        assert sum(larger.values()) < _MAX_DISK_BYTES, larger
