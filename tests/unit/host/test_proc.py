"""Starting processes: tools that end, and VMMs that outlive the engine."""

import asyncio
import os
import resource
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from squib.errors import DependencyMissing, HostError, ToolFailed
from squib.host import proc, processes
from squib.host.locks import FileLock
from squib.host.processes import Process, ProcessIdentity

SLEEPER = ["sh", "-c", "echo ready; exec sleep 60"]
FAMILY = ["sh", "-c", "sleep 60 & sleep 60 & wait"]


@pytest.fixture
def lock_path(tmp_path: Path) -> Iterator[Path]:
    """Return the path of a lock file. A process that still holds it after the test is killed."""
    yield tmp_path / "vmm.lock"
    processes.kill(ProcessIdentity(tmp_path / "vmm.lock"))


def start(lock_path: Path, argv: list[str], *, pass_fds: tuple[int, ...] = ()) -> Process:
    with FileLock(lock_path) as lock:
        assert lock.try_acquire()
        return proc.spawn(argv, lock=lock, pass_fds=pass_fds, log_path=lock_path.with_name("vmm.log"))


def is_locked(lock_path: Path) -> bool:
    with FileLock(lock_path) as lock:
        return not lock.try_acquire()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.002)


async def run(test: Callable[[], Awaitable[None]]) -> None:
    async with asyncio.timeout(20):
        await test()


@pytest.mark.anyio
async def test_a_spawned_process_holds_its_lock_until_it_ends(lock_path: Path) -> None:
    async def test() -> None:
        process = start(lock_path, SLEEPER)
        assert is_locked(lock_path)
        assert processes.holders(lock_path) == [process.pid]
        assert (process.running, process.returncode) == (True, None)
        await process.kill()
        await process.kill()
        assert (process.running, process.returncode) == (False, -signal.SIGKILL)
        assert not is_locked(lock_path)

    await run(test)


@pytest.mark.anyio
async def test_an_exit_status_is_known(lock_path: Path) -> None:
    async def test() -> None:
        process = start(lock_path, ["sh", "-c", "exit 3"])
        await process.wait()
        assert process.returncode == 3

    await run(test)


@pytest.mark.anyio
async def test_a_spawned_process_inherits_nothing_but_what_it_is_given(lock_path: Path, tmp_path: Path) -> None:
    async def test() -> None:
        given, kept = os.pipe()
        with (tmp_path / "secret").open("w") as secret:
            os.set_inheritable(secret.fileno(), True)
            script = "ls -l /proc/self/fd; env; ulimit -c; umask; ps -o sid= -p $$ 2>/dev/null || true"
            process = start(lock_path, ["sh", "-c", script], pass_fds=(given,))
            await process.wait()
        os.close(given)
        os.close(kept)
        said = (tmp_path / "vmm.log").read_text()
        assert "pipe:" in said
        assert "vmm.lock" in said
        assert "secret" not in said
        assert "HOME=" not in said
        assert "\n0\n0077\n" in said

    await run(test)


@pytest.mark.anyio
async def test_the_core_limit_of_this_process_stays(lock_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_CORE)

    async def test() -> None:
        await start(lock_path, ["true"]).wait()

    await run(test)
    assert resource.getrlimit(resource.RLIMIT_CORE) == before


@pytest.mark.anyio
async def test_a_program_that_cannot_be_executed(lock_path: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF nonsense")
    broken.chmod(0o755)

    async def test() -> None:
        with pytest.raises(HostError, match="cannot be started"):
            start(lock_path, [str(broken)])
        with pytest.raises(DependencyMissing, match="no-such-program"):
            start(lock_path, ["no-such-program"])
        assert not is_locked(lock_path)

    await run(test)


@pytest.mark.anyio
async def test_a_tool_that_takes_too_long_is_killed_with_all_its_children(lock_path: Path) -> None:
    async def test() -> None:
        with FileLock(lock_path) as lock:
            assert lock.try_acquire()
            with pytest.raises(ToolFailed, match="did not exit within"):
                await proc.run(FAMILY, timeout_s=0.1, lock=lock)
        await until(lambda: processes.holders(lock_path) == [])

    await run(test)


@pytest.mark.anyio
async def test_what_a_tool_left_behind_is_killed_too_when_time_is_up(lock_path: Path) -> None:
    """The tool itself has ended; a child in the background keeps its output open."""

    async def test() -> None:
        with FileLock(lock_path) as lock:
            assert lock.try_acquire()
            with pytest.raises(ToolFailed, match="did not exit within"):
                await proc.run(["sh", "-c", "sleep 60 &"], timeout_s=0.1, lock=lock)
        await until(lambda: processes.holders(lock_path) == [])

    await run(test)


@pytest.mark.anyio
@pytest.mark.parametrize("turns", range(12))
async def test_cancelling_at_any_moment_of_the_start_leaves_nothing(lock_path: Path, turns: int) -> None:
    async def test() -> None:
        with FileLock(lock_path) as lock:
            assert lock.try_acquire()
            task = asyncio.create_task(proc.run(FAMILY, lock=lock))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await until(lambda: processes.holders(lock_path) == [])

    await run(test)


@pytest.mark.anyio
async def test_cancelling_kills_the_tool_with_all_its_children(lock_path: Path) -> None:
    async def test() -> None:
        with FileLock(lock_path) as lock:
            assert lock.try_acquire()
            task = asyncio.create_task(proc.run(FAMILY, lock=lock))
            await until(lambda: len(processes.holders(lock_path)) == 3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await until(lambda: processes.holders(lock_path) == [])

    await run(test)
