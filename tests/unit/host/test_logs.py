"""Logs of bounded size."""

import asyncio
import os
import random
from pathlib import Path

import pytest

from squib.host import logs
from squib.host.logs import BoundedLog, LogPump


def sizes(path: Path) -> list[int]:
    return [part.stat().st_size for part in (path, logs.rotated(path)) if part.exists()]


@pytest.mark.parametrize("chunk", [1, 7, 100, 101, 250, 1000])
def test_the_latest_bytes_are_kept_and_the_disk_holds_at_most_twice_as_many(tmp_path: Path, chunk: int) -> None:
    path, written = tmp_path / "console.log", random.Random(chunk).randbytes(1000)
    log = BoundedLog(path, max_bytes=100)
    for start in range(0, len(written), chunk):
        log.append(written[start : start + chunk])
        seen = written[: start + chunk]
        assert logs.tail(path, 100) == seen[-100:]
        assert sum(sizes(path)) <= 200
    log.close()


def test_a_log_goes_on_where_another_writer_stopped(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    for text in (b"first boot\n", b"second boot\n"):
        log = BoundedLog(path)
        log.append(text)
        log.close()
    assert logs.tail(path) == b"first boot\nsecond boot\n"


def test_lines_are_taken_from_both_files(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    log = BoundedLog(path, max_bytes=8)
    log.append(b"one\ntwo\nthree\n")
    log.close()
    assert logs.tail(path, lines=3) == b"one\ntwo\nthree\n"
    assert logs.tail(path, lines=2) == b"two\nthree\n"
    assert logs.tail(path, lines=0) == b""


def test_there_may_be_no_log(tmp_path: Path) -> None:
    assert logs.tail(tmp_path / "none.log") == b""
    logs.remove(tmp_path / "none.log")


def test_a_full_disk_drops_output_and_says_so_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "console.log"
    log = BoundedLog(path)
    log.append(b"before\n")
    with monkeypatch.context() as full_disk:
        full_disk.setattr(os, "write", no_space)
        log.append(b"lost 1\n")
        log.append(b"lost 2\n")
    assert log.dropped_bytes == 14
    log.append(b"after\n")
    log.close()
    assert log.dropped_bytes == 0
    assert logs.tail(path) == b"before\n\n[squib: 14 bytes lost: the log could not be written]\nafter\n"


def no_space(fd: int, data: bytes) -> int:
    raise OSError(28, "No space left on device")


def test_a_directory_that_is_gone_is_no_error(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "gone" / "console.log")
    log.append(b"text")
    assert log.dropped_bytes == 4


def test_removing_a_log_removes_its_predecessor(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    log = BoundedLog(path, max_bytes=4)
    log.append(b"0123456789")
    log.close()
    assert len(sizes(path)) == 2
    logs.remove(path)
    assert list(tmp_path.iterdir()) == []


# --- pumps ---------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_pump_copies_what_arrives(tmp_path: Path) -> None:
    source, target = os.pipe()
    pump = LogPump(source, BoundedLog(tmp_path / "log"), pause_s=0)
    for text in (b"one\n", b"two\n"):
        os.write(target, text)
        async with asyncio.timeout(5):
            while not logs.tail(tmp_path / "log").endswith(text):
                await asyncio.sleep(0)
    os.write(target, b"three\n")
    os.close(target)
    pump.close()
    pump.close()
    assert logs.tail(tmp_path / "log") == b"one\ntwo\nthree\n"


@pytest.mark.anyio
async def test_a_pump_reads_one_piece_in_each_pause(tmp_path: Path) -> None:
    """However fast the other side writes, and the last pieces are copied at the end."""
    source, target = os.pipe()
    pump = LogPump(source, BoundedLog(tmp_path / "log"), pause_s=60)
    os.write(target, b"one\n")
    async with asyncio.timeout(5):
        while not logs.tail(tmp_path / "log"):
            await asyncio.sleep(0)
    os.write(target, b"two\n")
    for _ in range(100):
        await asyncio.sleep(0)
    assert logs.tail(tmp_path / "log") == b"one\n"
    pump.close()
    assert logs.tail(tmp_path / "log") == b"one\ntwo\n"
    os.close(target)


@pytest.mark.anyio
@pytest.mark.parametrize("moment", ["before", "while"])
async def test_a_pump_ends_with_its_source(tmp_path: Path, moment: str) -> None:
    source, target = os.pipe()
    os.write(target, b"last\n")
    if moment == "before":
        os.close(target)
    pump = LogPump(source, BoundedLog(tmp_path / "log"), pause_s=0)
    if moment == "while":
        await asyncio.sleep(0)
        os.close(target)
    async with asyncio.timeout(5):
        while pump._fd >= 0:
            await asyncio.sleep(0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(source)
    assert logs.tail(tmp_path / "log") == b"last\n"


@pytest.mark.anyio
async def test_a_pipe_survives_its_readers(tmp_path: Path) -> None:
    """As QEMU does, the writer has the pipe open for reading, too: it neither fails nor waits without a reader."""
    path = tmp_path / "output.pipe"
    for _ in range(2):
        logs.make_pipe(path)
    writer = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    for text in (b"first engine\n", b"second engine\n"):
        os.write(writer, text)
        logs.pump_pipe(path, BoundedLog(tmp_path / "log"), pause_s=60).close()
    with pytest.raises(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.close(writer)
    assert logs.tail(tmp_path / "log") == b"first engine\nsecond engine\n"
