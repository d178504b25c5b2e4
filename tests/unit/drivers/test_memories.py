"""The memfds of saved memories: each file is loaded once, and none is kept for nothing."""

import asyncio
import gc
import os
import threading
from pathlib import Path

import pytest

from squib.drivers.qemu import memories
from squib.drivers.qemu.memories import LoadingMemory, SavedMemories
from squib.errors import HostError
from squib.host import memory
from squib.host.files import OwnedFd

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


async def content(loading: LoadingMemory) -> bytes:
    """The first bytes of a memory, as soon as it is loaded."""
    await loading.loaded()
    return os.pread(loading.memfd.fileno(), 9, 0)


async def test_a_file_is_loaded_once(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Path] = []
    fill = memory.fill
    monkeypatch.setattr(memory, "fill", lambda memfd, path: loaded.append(path) or fill(memfd, path))
    saved = SavedMemories()
    found = await asyncio.gather(*(content(saved.open(files[3])) for _ in range(5)))
    assert (loaded, found) == ([files[3]], [b"\3" * 9] * 5)


async def test_only_the_last_ones_are_kept_and_none_of_a_file_that_is_gone(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, before = SavedMemories(), memfds()
    for path in files:
        await content(saved.open(path))
    assert memfds() == before + memories._KEPT
    for path in files[:-1]:
        path.unlink()
    monkeypatch.setattr(memories, "_KEPT_S", 0.01)
    await content(saved.open(files[-1]))
    async with asyncio.timeout(5):
        while memfds() != before + 1:
            await asyncio.sleep(0.01)


async def test_a_link_to_a_file_has_its_memory(files: list[Path], tmp_path: Path) -> None:
    saved, before = SavedMemories(), memfds()
    await content(saved.open(files[0]))
    (tmp_path / "link").hardlink_to(files[0])
    files[0].unlink()
    await content(saved.open(tmp_path / "link"))
    assert memfds() == before + 1


async def test_a_load_whose_caller_is_cancelled_goes_on(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    fill, started, go = memory.fill, threading.Event(), threading.Event()

    def slow(memfd: OwnedFd, path: Path) -> None:
        started.set()
        go.wait(10)
        fill(memfd, path)

    monkeypatch.setattr(memory, "fill", slow)
    saved, before = SavedMemories(), memfds()
    waiting = asyncio.create_task(content(saved.open(files[5])))
    await asyncio.to_thread(started.wait, 10)
    waiting.cancel()
    await asyncio.wait({waiting})
    assert waiting.cancelled()
    go.set()
    assert await content(saved.open(files[5])) == b"\5" * 9
    del saved, waiting
    gc.collect()
    assert memfds() == before


async def test_a_file_that_is_missing_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="nosuch cannot be loaded"):
        SavedMemories().open(tmp_path / "nosuch")


async def test_a_load_that_fails_is_an_error_and_is_tried_again(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = SavedMemories()
    with monkeypatch.context() as patch:
        patch.setattr(memory, "fill", lambda memfd, path: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        for _ in range(2):
            with pytest.raises(HostError, match=r"memory-4 cannot be loaded: Input/output error"):
                await content(saved.open(files[4]))
    assert await content(saved.open(files[4])) == b"\4" * 9
