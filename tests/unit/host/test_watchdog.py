"""The watchdog's program: it acts on the last byte that comes before the pipe's end."""

import array
import fcntl
import os
import signal
import subprocess
import sys
import termios
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from squib.host import watchdog
from squib.host.watchdog import MAX_RESTARTS, PAUSE_S, WINDOW_S, recent_restarts
from tests.processes import until

ENGINE = """
import os, sys
fds = sorted(int(fd) for fd in os.listdir("/proc/self/fd"))
with open(sys.argv[1], "a") as started:
    print(os.getpid(), *sys.argv[2:], *fds, file=started)
deaths = int(sys.argv[1].rpartition("-")[2])
if len(open(sys.argv[1]).readlines()) > deaths:
    os.write(int(sys.argv[3]), b"-")
"""


@dataclass
class Run:
    """A watchdog whose engine is a program that writes down how it was started.

    Its engines die until there were ``deaths``; the next one ends in order.
    """

    folder: Path
    deaths: int = 0

    def __post_init__(self) -> None:
        self.database, self.log = (self.folder / name for name in ("squib.db", "engine.log"))
        self.started = self.folder / f"started-{self.deaths}"
        self.database.touch()
        read_fd, self.pipe = os.pipe()
        argv = [str(read_fd), str(self.database), str(self.log), sys.executable, "-c", ENGINE, str(self.started)]
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", watchdog.__file__, *argv], pass_fds=(read_fd,), stdin=subprocess.DEVNULL
        )
        os.close(read_fd)

    def end(self, *writes: bytes) -> bool:
        """Write, close the pipe, and return whether another engine was started."""
        for data in writes:
            os.write(self.pipe, data)
        os.close(self.pipe)
        assert self.process.wait(20) == 0
        return self.started.exists()


@pytest.mark.parametrize(
    ("writes", "starts"),
    [([], False), ([b"-"], False), ([b"+"], True), ([b"+", b"-"], False), ([b"+-+"], True), ([b"-", b"+"], True)],
)
def test_the_last_byte_decides(tmp_path: Path, writes: list[bytes], starts: bool) -> None:
    assert Run(tmp_path).end(*writes) == starts


def test_the_next_engine_gets_a_pipe_and_nothing_of_the_last(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.end(b"+")
    pid, option, pipe, watchdog_pid, *fds = run.started.read_text().split()
    assert int(pid) != run.process.pid
    assert (option, watchdog_pid) == ("--watchdog", str(run.process.pid))
    assert pipe in fds and len(fds) == 5  # the pipe, standard input, output and error, and the directory that it lists
    assert "restarting it" in run.log.read_text()


def test_an_engine_that_dies_before_it_says_anything_is_followed_by_another(tmp_path: Path) -> None:
    """Before, the watchdog had become that engine, and nothing was left to start the next one."""
    run = Run(tmp_path, deaths=3)
    assert run.end(b"+")
    pids = [line.split()[0] for line in run.started.read_text().splitlines()]
    assert len(set(pids)) == 4


def test_without_a_state_directory_it_starts_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.database.unlink()
    assert not run.end(b"+")
    assert not run.log.exists()


def test_a_crash_loop_is_slowed_down(tmp_path: Path) -> None:
    run = Run(tmp_path, deaths=MAX_RESTARTS)
    before = time.monotonic()
    assert run.end(b"+")
    assert time.monotonic() - before >= PAUSE_S
    assert run.log.read_text().count(f"restarting it in {PAUSE_S:g} s") == 1


def test_only_recent_restarts_count() -> None:
    assert recent_restarts([], 100.0) == []
    assert recent_restarts([100 - WINDOW_S, 80.5, 99], 100.0) == [80.5, 99.0]


def pending(pipe: int) -> int:
    """Return the number of unread bytes in a pipe."""
    count = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, count)
    return count[0]


def test_it_takes_little_memory(tmp_path: Path) -> None:
    run = Run(tmp_path)
    os.write(run.pipe, b"+")
    until(lambda: pending(run.pipe) == 0, "it does not read")
    rollup = Path(f"/proc/{run.process.pid}/smaps_rollup").read_text().split()
    pss_kib = int(rollup[rollup.index("Pss:") + 1])
    run.process.send_signal(signal.SIGKILL)
    run.process.wait()
    os.close(run.pipe)
    assert pss_kib < 8 << 10
