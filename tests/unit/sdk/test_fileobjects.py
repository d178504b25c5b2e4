"""Files of a guest as file objects."""

import asyncio
import csv
import io
import os
import zipfile
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from squib.errors import FileExists, GuestDiskFull, TransferFailed
from squib.sdk.aio import AsyncVM
from squib.sdk.fileobjects import Reader
from squib.sdk.syncfiles import Files
from squib.sdk.vm import VM
from tests.fakes.files import FakeFiles
from tests.fakes.served import Served
from tests.unit.sdk.test_files import wait_until


@pytest.fixture
def guest(served: Served, tmp_path: Path) -> FakeFiles:
    served.agent.files = FakeFiles(tmp_path)
    return served.agent.files


@pytest.fixture
def files(guest: FakeFiles) -> Files:
    return VM.from_id("web").files


def test_a_file_is_read_from_anywhere(files: Files) -> None:
    content = os.urandom(3_000_000)
    files.write("/f", content)
    with files.open("/f", "rb") as file:
        assert (file.name, file.readable(), file.writable(), file.seekable()) == ("/f", True, False, True)
        assert file.read(10) == content[:10]
        assert file.seek(-5, io.SEEK_END) == len(content) - 5
        assert file.read() == content[-5:]
        assert file.read(1) == b""
        file.seek(1_500_000)
        file.seek(7, io.SEEK_CUR)
        assert (file.read(3), file.tell()) == (content[1_500_007:1_500_010], 1_500_010)
        file.seek(0)
        assert file.read() == content
        with pytest.raises(ValueError, match="negative"):
            file.seek(-1)
        with pytest.raises(io.UnsupportedOperation):
            file.write(b"x")


def test_a_file_that_is_replaced_is_read_to_its_end(files: Files) -> None:
    files.write("/f", b"a" * (16 << 20))
    with files.open("/f", "rb") as file:
        first = file.read(10)
        files.write("/f", b"b" * (16 << 20))
        assert set(first + file.read(8 << 20) + file.read()) == set(b"a")


def test_a_file_that_grows_is_read_on(files: Files, guest: FakeFiles) -> None:
    files.write("/f", b"one")
    with files.open("/f", "rb") as file:
        assert file.read() == b"one"
        with guest.at("/f").open("ab") as more:
            more.write(b"two")
        assert (file.read(), file.read()) == (b"two", b"")


def test_what_takes_a_file_object_takes_one_of_a_guest(files: Files) -> None:
    with files.open("/z.zip", "wb") as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/b", "content")
    with files.open("/z.zip", "rb") as file, zipfile.ZipFile(file) as archive:
        assert archive.read("a/b") == b"content"
    with files.open("/t.csv", "w") as file:
        csv.writer(file, lineterminator="\n").writerows([["a", "1"], ["b", "2"]])
    with files.open("/t.csv") as file:
        assert list(csv.reader(file)) == [["a", "1"], ["b", "2"]]


def test_text_is_not_changed_on_its_way(files: Files) -> None:
    text = "one\r\ntwo\nthreé\rfour"
    with files.open("/f", "w") as file:
        assert file.write(text) == len(text)
    assert files.read("/f") == text.encode()
    with files.open("/f") as file:
        assert list(file) == ["one\r\n", "two\n", "threé\rfour"]
    with files.open("/l", "w", encoding="latin-1") as file:
        file.write("é")
    with files.open("/l", errors="replace") as file:
        assert file.read() == "\ufffd"


@pytest.mark.parametrize("mode", ["w", "wb"])
def test_a_file_appears_when_it_is_closed(files: Files, guest: FakeFiles, mode: str) -> None:
    file = files.open("/f", mode)  # type: ignore[arg-type]
    file.write("x" * 1_000_000 if mode == "w" else b"x" * 1_000_000)
    file.flush()
    wait_until(lambda: guest.left_over() != [])
    assert not files.exists("/f")
    file.close()
    file.close()
    assert files.read("/f") == b"x" * 1_000_000
    with pytest.raises(ValueError, match="closed"):
        file.write("x" if mode == "w" else b"x")


@pytest.mark.parametrize("mode", ["w", "wb"])
def test_a_block_that_raises_writes_nothing(files: Files, guest: FakeFiles, mode: str) -> None:
    files.write("/f", b"old")
    with pytest.raises(ZeroDivisionError), files.open("/f", mode) as file:  # type: ignore[arg-type]
        file.write("x" * 1_000_000 if mode == "w" else b"x" * 1_000_000)
        raise ZeroDivisionError
    assert file.closed and files.read("/f") == b"old"
    wait_until(lambda: guest.left_over() == [])


def test_errors_come_while_it_is_written_or_when_it_is_closed(files: Files, guest: FakeFiles) -> None:
    files.write("/d/f", b"")
    with pytest.raises(FileExists), files.open("/d/f/f", "wb") as file:
        file.write(b"x")
    guest.answers["full"] = (507, b"")

    with pytest.raises(GuestDiskFull), files.open("/f", "wb") as file:
        for _ in range(10_000):
            file.write(bytes(1 << 18))
    assert file.closed
    wait_until(lambda: guest.left_over() == [])


@pytest.mark.anyio
async def test_asynchronous_files(guest: FakeFiles) -> None:
    async with asyncio.timeout(20):
        vm = await AsyncVM.from_id("web")
        files = vm.files
        async with await files.open("/f", "w") as file:
            for number in range(1000):
                assert await file.write(f"é{number}\n") == len(f"é{number}\n")
            with pytest.raises(io.UnsupportedOperation):
                await file.read()
        async with await files.open("/f") as file:
            assert (await file.read(4), await file.read(3)) == ("é0\né", "1\né")
            with pytest.raises(io.UnsupportedOperation):
                await file.write("x")
        async with await files.open("/f", "rb") as file:
            assert await file.read(2) == "é".encode()
            assert len(await file.read()) == guest.at("/f").stat().st_size - 2
        with pytest.raises(ZeroDivisionError):
            async with await files.open("/f", "wb") as file:
                await file.write(bytes(1 << 20))
                raise ZeroDivisionError
        assert (await files.read("/f")).startswith("é0\n".encode())
        with pytest.raises(FileExists):
            async with await files.open("/f/f", "wb") as file:
                await file.write(b"x")
        await vm.close()
    wait_until(lambda: guest.left_over() == [])


@pytest.mark.anyio
async def test_a_cancelled_read_takes_nothing() -> None:
    more = asyncio.Event()

    async def chunks() -> AsyncGenerator[bytes, None]:
        yield b"first "
        await more.wait()
        yield b"second"

    reader = Reader(chunks())
    reading = asyncio.create_task(reader.read(100))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    more.set()
    assert await reader.read(100) == b"first second"
    assert await reader.read(100) == b""


@pytest.mark.anyio
async def test_what_broke_off_does_not_look_like_the_end_later() -> None:
    async def chunks() -> AsyncGenerator[bytes, None]:
        yield b"first"
        raise TransferFailed("it broke off")

    reader = Reader(chunks())
    for _ in range(2):
        with pytest.raises(TransferFailed):
            await reader.read(100)
    await reader.close()
