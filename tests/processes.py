"""The processes of a state directory that hold no lock of their own: starting engines, and watchdogs."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path

from squib.host import watchdog
from squib.paths import Home


def watchdogs(home: Home) -> list[int]:
    """The pids of all watchdogs of a state directory."""
    return _find(home.database, lambda argv: watchdog.__file__ in argv)


def engines(home: Home) -> list[int]:
    """The pids of all detached engines of a state directory, those that are just starting too."""
    return _find(home.root, lambda argv: watchdog.__file__ not in argv and any("daemon" in part for part in argv[1:5]))


def _find(path: Path, wanted: Callable[[list[str]], bool]) -> list[int]:
    found = []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdecimal()):  # noqa: PTH208
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            argv = [os.fsdecode(part) for part in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]
            if str(path) in argv and wanted(argv):
                found.append(pid)
    return sorted(found)


def parent(pid: int) -> int | None:
    """The parent of a process; ``None`` if the process has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return None


def kill_9(pid: int) -> None:
    """SIGKILL a process and wait until it has ended."""
    pidfd = os.pidfd_open(pid)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    assert poller.poll(20_000), f"process {pid} does not end"
    os.close(pidfd)


def kill_engines(home: Home) -> None:
    """SIGKILL the detached engines and their watchdogs, so that none comes back."""
    while pids := engines(home) + watchdogs(home):
        for number in (signal.SIGSTOP, signal.SIGKILL):  # all stand still first: none replaces another
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        until(lambda pids=pids: not set(pids) & set(engines(home) + watchdogs(home)), "they do not end")  # type: ignore[misc]


def until(condition: Callable[[], bool], failure: str, *, within_s: float = 20.0) -> float:
    """Wait until ``condition`` holds; return how long that took, in seconds."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < within_s, failure
        time.sleep(0.01)
    return time.monotonic() - start
