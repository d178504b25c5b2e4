"""Which process is which: by the lock that it holds or by its cgroup, never by a recorded pid."""

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from squib.errors import HostError
from squib.host import cgroup, proc, processes
from squib.host.locks import FileLock
from squib.host.processes import Process, ProcessIdentity, describe_exit

pytestmark = pytest.mark.anyio

SLEEPER = ["sh", "-c", "echo ready; exec sleep 60"]
FAMILY = ["sh", "-c", "sleep 60 & sleep 60 & wait"]
CLOSER = [sys.executable, "-c", "import os, time; os.closerange(3, 1 << 16); time.sleep(60)"]
"""Closes the descriptors that it inherits, as Firecracker's jailer does."""
LAYOUT = cgroup.find_layout()
needs_cgroups = pytest.mark.skipif(not LAYOUT.hierarchies, reason="this user may not make control groups")


@pytest.fixture
def identity(tmp_path: Path) -> Iterator[ProcessIdentity]:
    """Return an identity without cgroups. A process that still matches after the test is killed."""
    identity = ProcessIdentity(tmp_path / "vmm.lock")
    yield identity
    processes.kill(identity)


@pytest.fixture
def in_group(tmp_path: Path) -> Iterator[ProcessIdentity]:
    """A process known by its lock or its cgroup."""
    name = f"squib-test/{os.getpid()}"
    cgroup.create(LAYOUT, name, cgroup.Limits(memory_mib=256, cpus=1, pids=64))
    identity = ProcessIdentity(tmp_path / "vmm.lock", cgroup.directories(LAYOUT, name))
    yield identity
    processes.kill(identity)
    cgroup.remove(LAYOUT, name)


def start(identity: ProcessIdentity, argv: list[str]) -> Process:
    """Start a process that inherits the lock and is in the cgroups."""
    with FileLock(identity.lock_path) as lock:
        assert lock.try_acquire()
        process = proc.spawn(argv, lock=lock, log_path=identity.lock_path.with_name("vmm.log"))
        for group in identity.cgroups:
            (group / "cgroup.procs").write_text(str(process.pid))
        return process


def is_locked(identity: ProcessIdentity) -> bool:
    with FileLock(identity.lock_path) as lock:
        return not lock.try_acquire()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.002)


@contextmanager
def onlooker(path: Path, prelude: str = "pass") -> Iterator[int]:
    """Run another program that has the file at ``path`` open; yield its pid."""
    script = f"import sys, fcntl; file = open(sys.argv[1], 'r+'); {prelude}; print(flush=True); sys.stdin.read()"
    argv = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield process.pid
        assert process.poll() is None, "the onlooker was ended"


@pytest.mark.parametrize(
    ("returncode", "text"),
    [
        (0, "exited with status 0"),
        (7, "exited with status 7"),
        (-signal.SIGKILL, "was killed by SIGKILL"),
        (-35, "was killed by signal 35"),  # a real-time signal: Python has no name for it
        (None, "ended"),
    ],
)
def test_how_a_process_ended_is_described(returncode: int | None, text: str) -> None:
    assert describe_exit(returncode) == text


async def test_a_process_that_merely_has_the_lock_file_open_is_not_taken_for_the_vmm(identity: ProcessIdentity) -> None:
    identity.lock_path.touch()
    with onlooker(identity.lock_path) as pid:
        assert pid not in processes.find(identity)
        assert processes.adopt(identity) is None
        vmm = start(identity, SLEEPER)
        assert processes.find(identity) == [vmm.pid]
        await asyncio.to_thread(processes.kill, identity)
        await vmm.wait()


@pytest.mark.parametrize("lock", ["fcntl.lockf(file, fcntl.LOCK_EX)", "fcntl.flock(file, fcntl.LOCK_SH)"])
async def test_a_lock_of_another_kind_does_not_make_a_vmm(identity: ProcessIdentity, lock: str) -> None:
    """A record lock, or a shared one: squib takes neither."""
    identity.lock_path.touch()
    with onlooker(identity.lock_path, lock):
        assert processes.find(identity) == []


async def test_a_second_descriptor_of_the_lock_file_is_not_the_lock(identity: ProcessIdentity) -> None:
    """The lock belongs to the open file that took it: the engine's, which the VMM inherits."""
    with FileLock(identity.lock_path) as lock, onlooker(identity.lock_path):
        fcntl.flock(lock.fileno(), fcntl.LOCK_EX)
        assert processes.find(identity) == []


@needs_cgroups
async def test_a_process_that_closes_its_descriptors_is_known_by_its_cgroup(in_group: ProcessIdentity) -> None:
    vmm = start(in_group, CLOSER)
    await until(lambda: not is_locked(in_group))
    assert vmm.pid in processes.find(in_group)
    vmm.forget()
    adopted = processes.adopt(in_group)
    assert adopted
    assert adopted.pid == vmm.pid
    await asyncio.to_thread(processes.kill, in_group)
    await adopted.wait()
    assert processes.find(in_group) == []
    assert [cgroup.members(group) for group in in_group.cgroups] == [[] for _ in in_group.cgroups]


@needs_cgroups
async def test_the_process_that_holds_the_lock_comes_first(in_group: ProcessIdentity) -> None:
    """Its children share the cgroup; the VMM itself is the one to watch."""
    with FileLock(in_group.lock_path) as lock:
        child = subprocess.Popen(["sleep", "60"])  # noqa: ASYNC220
        for group in in_group.cgroups:
            (group / "cgroup.procs").write_text(str(child.pid))
        assert lock.try_acquire()
        vmm = proc.spawn(SLEEPER, lock=lock, log_path=in_group.lock_path.with_name("vmm.log"))
    assert processes.find(in_group) == [vmm.pid, child.pid]
    processes.kill(in_group)
    await vmm.wait()
    assert child.wait(timeout=5) in (0, -signal.SIGKILL)  # 0: `kill` has reaped it


@needs_cgroups
async def test_killing_ends_what_is_in_the_cgroup_and_what_holds_the_lock(in_group: ProcessIdentity) -> None:
    closer = start(in_group, CLOSER)
    await until(lambda: not is_locked(in_group))
    holder = start(ProcessIdentity(in_group.lock_path), SLEEPER)
    await asyncio.to_thread(processes.kill, in_group)
    await closer.wait()
    await holder.wait()
    assert processes.find(in_group) == []
    assert not is_locked(in_group)


@needs_cgroups
async def test_processes_of_one_owner_are_told_apart(in_group: ProcessIdentity) -> None:
    """A VM may have other processes besides its VMM, each with its own lock."""
    roles = {"vmm": in_group, "uplink": ProcessIdentity(in_group.lock_path.with_name("uplink.lock"))}
    running = {role: start(identity, SLEEPER) for role, identity in roles.items()}
    for role, identity in roles.items():
        assert processes.find(identity) == [running[role].pid]
    await asyncio.to_thread(processes.kill, roles["vmm"])
    assert running["uplink"].running
    await asyncio.to_thread(processes.kill, roles["uplink"])
    await asyncio.gather(*(process.wait() for process in running.values()))


async def test_what_does_not_end_is_an_error(identity: ProcessIdentity) -> None:
    """A lock whose holder cannot be found: here this very process."""
    with FileLock(identity.lock_path) as lock:
        assert lock.try_acquire()
        with pytest.raises(HostError, match=r"vmm\.lock"):
            processes.kill(identity, timeout_s=0.05)


async def test_a_process_that_is_forgotten_goes_on_and_is_adopted(identity: ProcessIdentity) -> None:
    process = start(identity, SLEEPER)
    process.forget()
    adopted = processes.adopt(identity)
    assert adopted
    assert adopted.pid == process.pid
    waiter = asyncio.create_task(adopted.wait())
    await adopted.kill()
    await waiter
    assert adopted.returncode == -signal.SIGKILL  # it is a child of this process after all
    assert processes.adopt(identity) is None


async def test_the_process_of_an_engine_that_died_is_adopted(identity: ProcessIdentity) -> None:
    script = """
import asyncio, os, sys
from pathlib import Path
from squib.host import proc
from squib.host.locks import FileLock
async def main():
    path = Path(sys.argv[1])
    lock = FileLock(path)
    assert lock.try_acquire()
    print(proc.spawn(["sleep", "60"], lock=lock, log_path=path.with_name("vmm.log")).pid, flush=True)
    os._exit(1)
asyncio.run(main())
"""
    engine = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(identity.lock_path), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await engine.communicate()
    adopted = processes.adopt(identity)
    assert adopted
    assert adopted.pid == int(out)
    await adopted.kill()
    assert adopted.returncode is None
    assert not is_locked(identity)


async def test_killing_ends_all_that_hold_the_lock_and_nothing_else(identity: ProcessIdentity) -> None:
    bystander = start(ProcessIdentity(identity.lock_path.with_name("other.lock")), SLEEPER)
    family = start(identity, FAMILY)
    await until(lambda: len(processes.find(identity)) == 3)
    await asyncio.to_thread(processes.kill, identity)
    assert processes.find(identity) == []
    assert not is_locked(identity)
    await family.wait()
    assert bystander.running
    await bystander.kill()


async def test_a_pid_that_belongs_to_another_process_by_now_is_never_touched(identity: ProcessIdentity) -> None:
    """A record may hold the pid of a VMM that has ended, and another process may have got that pid since."""
    vmm = start(identity, ["true"])
    await vmm.wait()
    stranger = start(ProcessIdentity(identity.lock_path.with_name("other.lock")), SLEEPER)
    assert processes.adopt(identity) is None
    processes.kill(identity)
    processes.kill(identity)
    assert stranger.running
    await stranger.kill()


@pytest.mark.parametrize("act", [processes.adopt, processes._kill_found])
async def test_a_pid_that_changes_hands_meanwhile_is_left_alone(
    identity: ProcessIdentity, monkeypatch: pytest.MonkeyPatch, act: Callable[[ProcessIdentity], object]
) -> None:
    stranger = start(ProcessIdentity(identity.lock_path.with_name("other.lock")), SLEEPER)
    seen = [[stranger.pid], []]  # it matches at first; when its descriptor is open, that pid matches no more
    monkeypatch.setattr(processes, "find", lambda identity: seen.pop(0))
    assert not act(identity)
    monkeypatch.undo()
    assert stranger.running
    await stranger.kill()


def test_nothing_matches_a_lock_that_does_not_exist(identity: ProcessIdentity) -> None:
    assert processes.find(identity) == []
    processes.kill(identity)
    assert not identity.lock_path.exists()
