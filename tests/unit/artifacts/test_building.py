import asyncio
import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from squib.artifacts import building
from squib.errors import DiskFull, ToolFailed
from squib.host import proc, processes
from squib.host.locks import FileLock
from squib.models import Progress
from squib.paths import Home
from tests.fakes.tools import ToolBox


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToolBox:
    return ToolBox(tmp_path, monkeypatch)


def left_behind(home: Home, tools: ToolBox) -> list[Path]:
    return [*home.building.iterdir(), *tools.scratch.iterdir()]


@pytest.mark.anyio
async def test_the_folder_and_the_scratch_directory_of_a_build_are_removed(home: Home, tools: ToolBox) -> None:
    async with building.building(home, "image-x") as build:
        (build.folder / "half").write_text("made")
        scratch = build.scratch()
        (scratch / "chroot").mkdir()
        assert build.scratch() == scratch
        assert scratch.parent == tools.scratch
        assert scratch.stat().st_mode & 0o777 == 0o711
        assert len(left_behind(home, tools)) == 2
    assert left_behind(home, tools) == []


@pytest.mark.anyio
async def test_the_state_directory_is_made_private(home: Home) -> None:
    async with building.building(home, "image-x"):
        pass
    assert home.root.stat().st_mode & 0o777 == 0o700


@pytest.mark.anyio
async def test_a_cancelled_build_ends_its_tool_and_leaves_nothing(home: Home, tools: ToolBox, tmp_path: Path) -> None:
    fifo = tmp_path / "started"
    os.mkfifo(fifo)
    tools.add("slow", f'echo $$ >"{fifo}"; exec tail -f /dev/null')

    async def build_slowly() -> None:
        async with building.building(home, "image-x") as build:
            build.scratch()
            await proc.run(["slow"], lock=build.lock)

    task = asyncio.create_task(build_slowly())
    pid = int(await asyncio.to_thread(fifo.read_text))
    assert processes.holders(home.tools_lock("image-x")) == [pid]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert processes.holders(home.tools_lock("image-x")) == []
    assert left_behind(home, tools) == []


@pytest.mark.anyio
async def test_waiting_for_another_build_is_reported(home: Home) -> None:
    steps: list[str] = []

    def note(progress: Progress) -> None:
        steps.append(progress.step)

    done = asyncio.Event()

    async def second() -> None:
        async with building.building(home, "image-x", note):
            assert done.is_set()

    async with building.building(home, "image-x", note):
        waiting = asyncio.create_task(second())
        while not steps:
            await asyncio.sleep(0)
        done.set()
    await waiting
    assert steps == ["waiting for another build"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "text",
    [
        "Write failed because No space left on device",
        "E: You don't have enough free space in /var/cache/apt/archives/.",
        "tar: write error: Disk quota exceeded",
    ],
)
async def test_a_tool_error_about_a_full_disk_raises_disk_full(home: Home, tools: ToolBox, text: str) -> None:
    tools.add("packer", f'echo "{text}" >&2; exit 1')
    with pytest.raises(DiskFull) as caught:
        async with building.building(home, "image-x") as build:
            await proc.run(["packer"], lock=build.lock)
    assert text in caught.value.detail
    assert caught.value.hint
    assert left_behind(home, tools) == []


@pytest.mark.anyio
async def test_a_silent_tool_failure_on_a_full_disk_raises_disk_full(
    home: Home, tools: ToolBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools.add("packer", "exit 1")
    usage = shutil.disk_usage(tools.scratch)

    def full_scratch(place: Path) -> object:
        return usage._replace(free=0 if tools.scratch in Path(place).parents else 10 << 30)

    monkeypatch.setattr("shutil.disk_usage", full_scratch)
    with pytest.raises(DiskFull, match=str(tools.scratch)):
        async with building.building(home, "image-x") as build:
            build.scratch()
            await proc.run(["packer"], lock=build.lock)


@pytest.mark.anyio
async def test_another_tool_failure_does_not_raise_disk_full(home: Home, tools: ToolBox) -> None:
    tools.add("packer", "echo 'bad signature' >&2; exit 3")
    with pytest.raises(ToolFailed, match="status 3") as caught:
        async with building.building(home, "image-x") as build:
            await proc.run(["packer"], lock=build.lock)
    assert caught.value.detail == "bad signature"


@pytest.mark.anyio
async def test_enospc_in_python_raises_disk_full(home: Home) -> None:
    with pytest.raises(DiskFull):
        async with building.building(home, "image-x"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.anyio
async def test_sweep_removes_dead_builds_and_keeps_builds_in_progress(home: Home, tools: ToolBox) -> None:
    async with building.building(home, "image-alive") as build:
        dead = home.building / "image-dead.0123"
        dead.mkdir()
        scratch = tools.scratch / "squib-build-dead"
        scratch.mkdir()
        (dead / "scratch").symlink_to(scratch)
        loose = home.building / "initramfs.4567"
        loose.write_bytes(b"half")
        await building.sweep(home)
        assert left_behind(home, tools) == [build.folder]


def start_with_lock(program: Path, lock_path: Path) -> subprocess.Popen[bytes]:
    """Start a process that alone holds a lock."""
    with FileLock(lock_path) as lock:
        lock.acquire()
        return subprocess.Popen([program], pass_fds=[lock.fileno()])


@pytest.mark.anyio
async def test_sweep_kills_the_tools_of_a_dead_build(home: Home, tools: ToolBox, tmp_path: Path) -> None:
    fifo = tmp_path / "started"
    os.mkfifo(fifo)
    tools.add("orphan", f'echo $$ >"{fifo}"; exec tail -f /dev/null')
    home.building.mkdir(parents=True)
    home.locks.mkdir()
    (home.building / "image-dead.0123").mkdir()
    process = start_with_lock(tools.folder / "orphan", home.tools_lock("image-dead"))
    assert fifo.read_text() == f"{process.pid}\n"
    await building.sweep(home)
    assert process.wait() in (-9, 0)  # 0 where it was already reaped
    assert processes.holders(home.tools_lock("image-dead")) == []
    assert list(home.building.iterdir()) == []


def test_memory_is_used_as_scratch_only_if_there_is_plenty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr(building, "_MEMORY", tmp_path)
    monkeypatch.setattr(building, "_SCRATCH_BYTES", 1)
    monkeypatch.setattr(building, "_available_memory_bytes", lambda: 1 << 40)
    assert building._scratch_parent() == tmp_path
    monkeypatch.setattr(building, "_available_memory_bytes", lambda: 1 << 30)
    assert building._scratch_parent() == Path("/var/tmp")
    monkeypatch.setattr(building, "_available_memory_bytes", lambda: 1 << 40)
    monkeypatch.setattr(building, "_SCRATCH_BYTES", 1 << 60)
    assert building._scratch_parent() == Path("/var/tmp")
