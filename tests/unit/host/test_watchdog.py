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


@dataclass
class Run:
    """A watchdog whose engine is a program that writes down how it was started."""

    folder: Path
    restarts: str = ""

    def __post_init__(self) -> None:
        self.database, self.log, self.started = (self.folder / name for name in ("squib.db", "engine.log", "started"))
        self.database.touch()
        fds = "len(os.listdir('/proc/self/fd'))"
        engine = f"import os, sys; fds = {fds}; print(os.getpid(), *sys.argv[2:], fds, file=open(sys.argv[1], 'w'))"
        read_fd, self.pipe = os.pipe()
        argv = [str(read_fd), str(self.database), str(self.log), self.restarts]
        argv += [sys.executable, "-c", engine, str(self.started)]
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


def test_it_becomes_the_next_engine_and_passes_on_nothing_of_the_last(tmp_path: Path) -> None:
    run = Run(tmp_path)
    before = time.monotonic()
    assert run.end(b"+")
    pid, option, restarts, fds = run.started.read_text().split()
    assert int(pid) == run.process.pid
    assert option == "--restarts" and before - 1 < float(restarts) < time.monotonic() + 1
    assert int(fds) == 4  # standard input, output and error, and the directory that it lists
    assert "restarting it" in run.log.read_text()


def test_without_a_state_directory_it_starts_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.database.unlink()
    assert not run.end(b"+")
    assert not run.log.exists()


def test_a_crash_loop_is_slowed_down(tmp_path: Path) -> None:
    now = time.monotonic()
    run = Run(tmp_path, ",".join(str(now - ago) for ago in range(MAX_RESTARTS)))
    before = time.monotonic()
    assert run.end(b"+")
    assert time.monotonic() - before >= PAUSE_S
    (line, *_) = run.log.read_text().splitlines()
    assert f"restarting it in {PAUSE_S:g} s" in line


def test_only_recent_restarts_count() -> None:
    assert recent_restarts("", 100.0) == []
    assert recent_restarts(f"{100 - WINDOW_S},80.5,99", 100.0) == [80.5, 99.0]


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
