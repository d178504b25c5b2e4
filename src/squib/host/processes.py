"""Find, adopt, watch and kill processes that outlive the engine.

A recorded pid does not identify a process, because another process may have it by now. A process is identified by what
the kernel knows about it: the lock that it holds, or the cgroup that it is in (`ProcessIdentity`). Such processes are
started by `squib.host.proc` and `squib.host.jail`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from squib.errors import HostError
from squib.host import cgroup
from squib.host.locks import FileLock

_SETTLE_S = 0.005
_START_TIME_FIELD = 19
"""Field 22 of ``proc_pid_stat(5)``, counted after the name of the program."""


@dataclass(frozen=True)
class ProcessIdentity:
    """How to recognise a process, and every process that it started.

    A process matches if it holds the lock of the file at ``lock_path``, which it inherits, or if it is in one of
    ``cgroups``, the directories of its own cgroup, one in each hierarchy. One of the two is enough. A program that
    closes inherited descriptors, such as Firecracker's jailer, is found by its cgroup. On a host without cgroups a
    process is found by the lock.
    """

    lock_path: Path
    cgroups: tuple[Path, ...] = ()


def describe_exit(returncode: int | None) -> str:
    """Describe how a process ended, such as ``was killed by SIGSEGV``.

    ``returncode`` is the exit status, or minus the signal's number; ``None`` if it is not known.
    """
    if returncode is None:
        return "ended"
    if returncode >= 0:
        return f"exited with status {returncode}"
    names = {number.value: number.name for number in signal.Signals}  # most real-time signals have no name
    return f"was killed by {names.get(-returncode, f'signal {-returncode}')}"


class Process:
    """A process that outlives the engine that started it.

    It is a child of this engine, or was started by a former one.
    """

    def __init__(self, pid: int, pidfd: int) -> None:
        """Take over ``pidfd``. See `adopt`, `squib.host.proc.spawn`."""
        self.pid = pid
        self.returncode: int | None = None
        """Exit status, or minus the signal's number; ``None`` while it runs, and for a process of a former engine."""
        self._pidfd = pidfd
        self._ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(pidfd, self._on_exit)

    def _on_exit(self) -> None:
        with contextlib.suppress(ChildProcessError):  # not a child of this engine, or reaped by `kill`
            self.returncode = _reap(self._pidfd)
        self._close()
        self._ended.set()

    def has_ended(self) -> bool:
        """Ask the kernel whether the process has ended; `running` may lag behind."""
        if self._pidfd < 0:
            return True
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        return bool(poller.poll(0))

    @property
    def running(self) -> bool:
        return not self._ended.is_set()

    async def wait(self) -> None:
        """Wait until the process has ended; a child is then reaped."""
        await self._ended.wait()

    async def kill(self) -> None:
        """Send SIGKILL and wait until the process has ended. Idempotent."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        await self.wait()

    def forget(self) -> None:
        """Stop watching. The process keeps running."""
        self._close()

    def _close(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1


def _reap(pidfd: int) -> int | None:
    """Reap a child that has ended; return its exit status.

    Returns minus the signal's number if a signal ended it, and ``None`` if it has not ended.
    """
    ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def find(identity: ProcessIdentity) -> list[int]:
    """Return the pids of all matching processes but this one.

    Those that hold the lock come first.
    """
    found = holders(identity.lock_path)
    return [*found, *(pid for pid in members(identity.cgroups) if pid not in found)]


def members(cgroups: Sequence[Path]) -> list[int]:
    """Return the pids of all processes in these cgroups but this one."""
    return sorted({pid for group in cgroups for pid in cgroup.members(group)} - {os.getpid()})


def holders(lock_path: Path) -> list[int]:
    """Return the pids of other processes that hold the lock at ``lock_path``.

    Finds only processes that this user may inspect: root finds all, other users their own.
    """
    try:
        wanted = lock_path.stat()
    except FileNotFoundError:
        return []
    return [pid for pid in _pids() if pid != os.getpid() and _holds_lock(pid, wanted)]


def is_stopped(pid: int) -> bool:
    """Return whether a process is stopped by a signal (or by a debugger).

    It does not run until SIGCONT.
    """
    try:
        return _stat(pid)[0] in ("T", "t")
    except ProcessLookupError:
        return False


def started_at(pid: int) -> datetime:
    """Return when a process was started, to the second.

    Raises `ProcessLookupError` if it has ended.
    """
    ticks = int(_stat(pid)[_START_TIME_FIELD])
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return datetime.fromtimestamp(time.time() - age_s, UTC)


def _stat(pid: int) -> list[str]:
    """Return the fields of ``/proc/PID/stat`` from the state on.

    Raises `ProcessLookupError` if the process has ended.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        raise ProcessLookupError(pid) from None


def terminate(pid: int, lock_path: Path, *, timeout_s: float) -> bool:
    """Send SIGTERM to a lock's holder; return whether it ends in time.

    A stopped process is continued.

    Raises `ProcessLookupError` if the process has ended, or holds the lock no more.
    """
    pidfd = os.pidfd_open(pid)
    try:
        if pid not in holders(lock_path):  # it may be a newer process with its pid
            raise ProcessLookupError(pid)
        for number in (signal.SIGTERM, signal.SIGCONT):
            signal.pidfd_send_signal(pidfd, number)
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        return bool(poller.poll(timeout_s * 1000))
    finally:
        os.close(pidfd)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208 (names are enough)


def _holds_lock(pid: int, wanted: os.stat_result) -> bool:
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            return any(_is_same(entry, wanted) and _is_locked(pid, entry.name) for entry in entries)
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        return False


def _is_same(entry: os.DirEntry[str], wanted: os.stat_result) -> bool:
    try:
        found = entry.stat()
    except FileNotFoundError:  # closed since
        return False
    return (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino)


def _is_locked(pid: int, fd: str) -> bool:
    """Return whether the open file ``fd`` holds the lock.

    Another open file of the same path does not (``proc_pid_fdinfo(5)``).
    """
    lines = Path(f"/proc/{pid}/fdinfo/{fd}").read_text().splitlines()
    return any(line.startswith("lock:") and {"FLOCK", "WRITE"} <= {*line.split()} for line in lines)


def adopt(identity: ProcessIdentity) -> Process | None:
    """Watch the process of a former engine that matches ``identity``.

    Returns ``None`` if no process matches.
    """
    return _adopt(lambda: find(identity))


def adopt_member(cgroups: Sequence[Path]) -> Process | None:
    """Watch the process that is in these cgroups; return ``None`` if they are empty.

    Unlike `adopt` it does not search the whole host for the holder of a lock.
    """
    return _adopt(lambda: members(cgroups))


def _adopt(find_pids: Callable[[], list[int]]) -> Process | None:
    for pid in find_pids():
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            if pid in find_pids():  # still a match, so the pidfd is not of a newer process with its pid
                return Process(pid, pidfd)
            os.close(pidfd)
    return None


def kill(identity: ProcessIdentity, *, timeout_s: float = 10.0) -> None:
    """Kill every process that matches, and wait until all have ended.

    Returns when the lock is free and the cgroups are empty. Idempotent. Children of this process are reaped.

    Raises `HostError` after ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    while _is_there(identity):
        _wait_all(_kill_found(identity), deadline)
        if time.monotonic() > deadline:
            raise HostError(f"processes were killed and did not end: {find(identity)} (they hold {identity.lock_path})")


def _kill_found(identity: ProcessIdentity) -> list[int]:
    """Kill the processes that match now; return their pidfds."""
    pidfds = []
    for pid in find(identity):
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            if pid in find(identity):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                pidfds.append(pidfd)
            else:
                os.close(pidfd)
    return pidfds


def _is_there(identity: ProcessIdentity) -> bool:
    """Return whether a process matches, even one this user cannot inspect.

    Cheaper than `find`.
    """
    if members(identity.cgroups):
        return True
    if not identity.lock_path.exists():
        return False
    with FileLock(identity.lock_path) as lock:
        return not lock.try_acquire()


def _wait_all(pidfds: list[int], deadline: float) -> None:
    """Wait until every process has ended, and close the pidfds.

    If the list is empty, wait 5 ms, because a process that is just starting may appear.
    """
    if not pidfds:
        time.sleep(_SETTLE_S)
    for pidfd in pidfds:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
        with contextlib.suppress(ChildProcessError):
            _reap(pidfd)
        os.close(pidfd)
