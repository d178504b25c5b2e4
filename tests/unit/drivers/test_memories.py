"""The memfds of saved memories: each file is loaded once, and none is kept for nothing."""

import asyncio
import os
import threading
from pathlib import Path

import pytest

from squib.drivers.qemu import memories
from squib.drivers.qemu.memories import SavedMemories
from squib.errors import HostError
from squib.host import memory

pytestmark = pytest.mark.anyio


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    made = [tmp_path / f"memory-{number}" for number in range(6)]
    for number, path in enumerate(made):
        path.write_bytes(bytes([number]) * 4096)
    return made


def memfds() -> int:
    """How many descriptors of guests' memories this process has."""
    count = 0
    for fd in os.listdir("/proc/self/fd"):  # noqa: PTH208 (names only)
        try:
            count += "squib-memory" in os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115
        except OSError:  # the directory's own
            continue
    return count


async def test_a_file_is_loaded_once(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Path] = []
    filled = memory.filled
    monkeypatch.setattr(memory, "filled", lambda path: loaded.append(path) or filled(path))
    saved = SavedMemories()
    fds = await asyncio.gather(*(saved.open(files[0]) for _ in range(5)))
    assert loaded == [files[0]]
    for fd in fds:
        assert os.pread(fd, 9, 0) == bytes(9)
        os.close(fd)


async def test_only_the_last_ones_are_kept_and_none_of_a_file_that_is_gone(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, before = SavedMemories(), memfds()
    for path in files:
        os.close(await saved.open(path))
    assert memfds() == before + memories._KEPT
    for path in files[:-1]:
        path.unlink()
    monkeypatch.setattr(memories, "_KEPT_S", 0.01)
    os.close(await saved.open(files[-1]))
    async with asyncio.timeout(5):
        while memfds() != before + 1:
            await asyncio.sleep(0.01)


async def test_a_link_to_a_file_has_its_memory(files: list[Path], tmp_path: Path) -> None:
    saved, before = SavedMemories(), memfds()
    os.close(await saved.open(files[0]))
    (tmp_path / "link").hardlink_to(files[0])
    files[0].unlink()
    os.close(await saved.open(tmp_path / "link"))
    assert memfds() == before + 1


async def test_a_load_that_is_cancelled_leaves_nothing(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    filled, started, go = memory.filled, threading.Event(), threading.Event()

    def slow(path: Path) -> int:
        started.set()
        go.wait(10)
        return filled(path)

    monkeypatch.setattr(memory, "filled", slow)
    saved, before = SavedMemories(), memfds()
    opening = asyncio.create_task(saved.open(files[0]))
    await asyncio.to_thread(started.wait, 10)
    opening.cancel()
    await asyncio.wait({opening})
    assert opening.cancelled()
    go.set()
    os.close(await saved.open(files[0]))
    async with asyncio.timeout(10):
        while memfds() != before + 1:  # the one that is kept
            await asyncio.sleep(0.01)


async def test_a_file_that_is_missing_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="nosuch cannot be loaded"):
        await SavedMemories().open(tmp_path / "nosuch")
