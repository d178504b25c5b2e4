"""``vm.files``: sync and async agree, bytes are unchanged, and broken transfers are errors."""

import asyncio
import inspect
import io
import os
import threading
import typing
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from squib.errors import (
    AgentUnreachable,
    DirectoryNotEmpty,
    FileExists,
    GuestDiskFull,
    InvalidArgument,
    NoSuchFile,
    NotADirectory,
    NotAFile,
    TransferFailed,
)
from squib.models import FileEventType, FileType
from squib.sdk import fileclient
from squib.sdk import files as files_module
from squib.sdk.aio import AsyncVM
from squib.sdk.files import AsyncFiles
from squib.sdk.syncfiles import Files
from squib.sdk.watching import AsyncWatch, Watch
from tests.fakes.files import FakeFiles

ODD = ["a b", "new\nline", "\udcff\udcfe", "é", "a+b%2F&path=x#?;=", "-rf", "..."]


async def asynchronously(test: Callable[[AsyncFiles], Coroutine[Any, Any, None]]) -> None:
    async with asyncio.timeout(20):
        vm = await AsyncVM.from_id("web")
        await test(vm.files)
        await vm.close()


@pytest.mark.parametrize("name", ODD)
def test_names_may_hold_any_bytes(files: Files, guest: FakeFiles, name: str) -> None:
    path = f"/d/{name}"
    assert files.write(path, b"content", parents=True).name == name
    assert guest.at(path).read_bytes() == b"content"
    assert files.read(path) == files.read(os.fsencode(path)) == files.read(Path(path)) == b"content"
    assert [info.name for info in files.list("/d")] == [name]
    assert files.stat(path).type is FileType.FILE and files.exists(path)
    files.rename(path, f"/d/{name}2")
    files.remove(f"/d/{name}2")
    assert files.list("/d") == []


@pytest.mark.anyio
async def test_all_of_it_asynchronously(guest: FakeFiles) -> None:
    async def test(files: AsyncFiles) -> None:
        await files.mkdir("/d/e", parents=True, mode=0o700, owner="me")
        assert guest.at("/d/e").stat().st_mode & 0o777 == 0o700
        info = await files.write("/d/f", "text\udc00".replace("\udc00", "é"), mode=0o640, owner="1:2")
        assert (info.size, info.mode, guest.owners) == (6, 0o640, {"/d/e": "me", "/d/f": "1:2"})
        assert await files.read_text("/d/f") == "texté"
        assert [chunk async for chunk in files.stream("/d/f", 1, 3)] == [b"ext"]
        assert [entry.name for entry in await files.list("/d")] == ["e", "f"]
        assert await files.exists("/d/f") and not await files.exists("/d/g")
        await files.rename("/d/f", "/d/g")
        assert (await files.stat("/d/g")).size == 6
        async with await files.open("/d/h", "wb") as file:
            assert await file.write(b"written") == 7
        async with await files.open("/d/h") as file:
            assert (await file.read(3), await file.read(), await file.read(3)) == ("wri", "tten", "")
        async with files.watch("/d") as events:
            guest_event(guest, {"type": "created", "path": "/d/x"})
            assert (await anext(events)).path == "/d/x"
        await files.remove("/d", recursive=True)
        await files.remove("/d", missing_ok=True)
        assert os.listdir(guest.root) == []  # noqa: PTH208

    await asynchronously(test)


def guest_event(guest: FakeFiles, event: dict[str, Any]) -> None:
    """Something happens in the guest, whose loop runs in another thread."""
    served_loop(guest).call_soon_threadsafe(guest.events.put_nowait, event)


def served_loop(guest: FakeFiles) -> asyncio.AbstractEventLoop:
    assert guest.loop
    return guest.loop


def test_errors_are_those_of_the_guest(files: Files, guest: FakeFiles) -> None:
    files.write("/d/f", b"", parents=True)
    for error, work in [
        (NoSuchFile, lambda: files.read("/nosuch")),
        (NoSuchFile, lambda: files.write("/nosuch/f", b"", parents=False)),
        (NoSuchFile, lambda: files.remove("/nosuch")),
        (NoSuchFile, lambda: files.open("/nosuch")),
        (NoSuchFile, lambda: next(files.stream("/nosuch"))),
        (NotAFile, lambda: files.read("/d")),
        (NotAFile, lambda: files.write("/d", b"")),
        (NotAFile, lambda: files.open("/d", "rb")),
        (NotADirectory, lambda: files.list("/d/f")),
        (NotADirectory, lambda: files.watch("/d/f")),
        (FileExists, lambda: files.mkdir("/d")),
        (DirectoryNotEmpty, lambda: files.remove("/d")),
    ]:
        with pytest.raises(error):
            work()
    assert not files.exists("/d/f/g")


def test_what_is_no_argument_is_not_sent(files: Files, guest: FakeFiles) -> None:
    for work in [
        lambda: files.read("~/passwd"),
        lambda: files.write("/a\0", b""),
        lambda: files.write("/a", b"", mode=0o10000),
        lambda: files.write("/a", 5),  # type: ignore[arg-type]
        lambda: files.write("/a", ["text"]),  # type: ignore[list-item]
        lambda: files.write("/a", io.StringIO("text")),  # type: ignore[arg-type]
        lambda: files.open("/a", "a"),  # type: ignore[arg-type]
        lambda: files.open("", "w"),
        lambda: list(files.stream("/a", -1)),
        lambda: files.upload(__file__, "~/x"),
        lambda: files.download("~", "/tmp"),
        lambda: files.upload(__file__, "/a", owner="me", keep_owner=True),
    ]:
        with pytest.raises(InvalidArgument) as caught:
            work()
        assert caught.value.message
    wait_until(lambda: guest.left_over() == [])  # of the uploads that had begun
    assert os.listdir(guest.root) == []  # noqa: PTH208


# --- content -------------------------------------------------------------------------------------------------------


def test_everything_that_holds_bytes_can_be_written(files: Files, tmp_path: Path) -> None:
    content = os.urandom(3 << 20)
    (tmp_path / "source").write_bytes(content)

    def pieces(size: int) -> Iterator[bytes]:
        for start in range(0, len(content), size):
            yield content[start : start + size]

    async def slowly() -> AsyncIterator[bytes]:
        for piece in pieces(1 << 19):
            await asyncio.sleep(0)
            yield piece

    with (tmp_path / "source").open("rb") as file:
        for data in (
            content,
            bytearray(content),
            memoryview(content),
            pieces(1000),
            list(pieces(1 << 20)),
            slowly(),
            file,
        ):
            assert files.write("/f", data).size == len(content)  # type: ignore[arg-type]
            assert files.read("/f") == content
            files.remove("/f")
    assert files.write("/f", "").size == files.write("/f", []).size == 0


def test_a_part_of_a_file_is_read(files: Files) -> None:
    files.write("/f", bytes(range(256)))
    assert b"".join(files.stream("/f", 250)) == files.read("/f", offset=250) == bytes(range(250, 256))
    assert b"".join(files.stream("/f", 1, 2)) == files.read("/f", 1, 2) == b"\1\2"
    assert b"".join(files.stream("/f", 1000)) == files.read("/f", 1000) == files.read("/f", 0, 0) == b""


def test_a_huge_file_is_not_read_into_memory(files: Files, guest: FakeFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    with (guest.root / "huge").open("wb") as file:
        file.truncate(5 << 30)
    with pytest.raises(InvalidArgument, match="5368709120 bytes, the limit is 256 MiB") as caught:
        files.read("/huge")
    assert "offset and length" in caught.value.hint
    with pytest.raises(InvalidArgument):
        files.read_text("/huge")
    assert files.read("/huge", offset=(5 << 30) - 9) == bytes(9)
    assert files.read("/huge", length=1 << 20) == bytes(1 << 20)
    monkeypatch.setattr(fileclient, "MAX_READ_BYTES", 100)
    assert files.read("/huge", length=1000) == bytes(1000)
    (guest.root / "status").symlink_to("/proc/self/status")
    with pytest.raises(InvalidArgument, match="more than 100 bytes"):
        files.read("/status")


def test_missing_parents_are_created(files: Files, guest: FakeFiles, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    files.write("/a/b/f", "x")
    with files.open("/c/d/f", "w") as file:
        file.write("x")
    files.upload(__file__, "/e/f/g")
    files.upload(tmp_path / "tree", "/h/i/j")
    assert [(guest.root / path).exists() for path in ("a/b/f", "c/d/f", "e/f/g", "h/i/j")] == [True] * 4
    for refused in (
        lambda: files.write("/x/y/f", "x", parents=False),
        lambda: files.upload(__file__, "/x/y/f", parents=False),
        lambda: files.upload(tmp_path / "tree", "/x/y/f", parents=False),
    ):
        with pytest.raises(NoSuchFile):
            refused()
    assert not (guest.root / "x").exists()


def test_files_are_used_as_a_user(files: Files, guest: FakeFiles, tmp_path: Path) -> None:
    files.write("f", "x", user="me")
    assert (guest.root / "home/me/f").read_text() == files.read_text("f", user="me") == "x"
    with files.open("f", user="me") as file:
        assert file.read() == "x"
    assert b"".join(files.stream("f", user="me")) == b"x"
    assert [info.name for info in files.list(".", user="me")] == ["f"]
    assert files.stat("f", user="me").size == 1 and files.exists("f", user="me") and not files.exists("f")
    files.mkdir("d", user="me")
    files.rename("f", "d/g", user="me")
    files.download("d/g", tmp_path / "g", user="me")
    files.upload(tmp_path / "g", "h", user="me")
    files.download("d", tmp_path / "d", user="me")
    files.upload(tmp_path / "d", "e", user="me")
    with files.watch("d", user="me"):
        pass
    files.remove("d", recursive=True, user="me")
    assert set(guest.acting.values()) == {"me", "root"}
    assert {path for path, user in guest.acting.items() if user == "root"} == {"/root/f"}
    assert sorted(path.name for path in (guest.root / "home/me").iterdir()) == ["e", "h"]


@pytest.mark.parametrize("kind", ["generator", "async generator", "file"])
def test_data_that_fails_leaves_nothing(files: Files, guest: FakeFiles, kind: str) -> None:
    def pieces() -> Iterator[bytes]:
        yield bytes(1 << 20)
        raise ZeroDivisionError

    async def asynchronous() -> AsyncIterator[bytes]:
        for piece in pieces():
            yield piece

    class File(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            raise ZeroDivisionError

    data: Any = {"generator": pieces(), "async generator": asynchronous(), "file": File()}[kind]
    files.write("/f", b"old")
    with pytest.raises(ZeroDivisionError):
        files.write("/f", data)
    assert files.read("/f") == b"old"
    wait_until(lambda: guest.left_over() == [])


@pytest.mark.anyio
async def test_sources_that_are_silent_hold_nobody_up(guest: FakeFiles) -> None:
    async def test(files: AsyncFiles) -> None:
        pipes = [os.pipe() for _ in range(40)]  # more than an event loop has threads
        sources = [os.fdopen(out, "rb") for out, _ in pipes]
        writing = [asyncio.create_task(files.write(f"/{i}", source)) for i, source in enumerate(sources)]
        await asyncio.to_thread(wait_until, lambda: len(guest.left_over()) == 40)
        await files.download("/there", guest.root.parent / "here")
        for task in writing[:20]:
            task.cancel()
        done, waiting = await asyncio.wait(writing[:20], timeout=5)
        assert len(done) == 20 and not waiting
        for _, write_end in pipes:
            os.close(write_end)
        assert [(await task).size for task in writing[20:]] == [0] * 20
        await asyncio.to_thread(wait_until, lambda: not any(t.name == "squib blocking" for t in threading.enumerate()))
        for source in sources:
            source.close()

    guest.at("/there").write_bytes(b"data")
    await asynchronously(test)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    deadline = threading.Event()
    for _ in range(2000):
        if condition():
            return
        deadline.wait(0.005)
    raise AssertionError("it does not come")


def test_a_full_disk_is_told_to_who_writes_without_end(files: Files, guest: FakeFiles) -> None:
    guest.answers["full"] = (507, b"")

    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(1 << 16)

    with pytest.raises(GuestDiskFull) as caught:
        files.write("/f", endless())
    assert "df -h" in caught.value.hint
    assert guest.left_over() == []


def test_a_file_that_breaks_off_is_never_taken_for_whole(files: Files, guest: FakeFiles, tmp_path: Path) -> None:
    files.write("/f", bytes(1 << 20))
    guest.break_off = "read"
    for work in (
        lambda: files.read("/f"),
        lambda: list(files.stream("/f")),
        lambda: files.open("/f", "rb").read(),
        lambda: files.download("/f", tmp_path / "f"),
    ):
        with pytest.raises(TransferFailed, match="'/f' was interrupted"):
            work()
    assert [path.name for path in tmp_path.iterdir()] == ["guest"]


@pytest.mark.parametrize("line", [b"", b"{}\n", b'{"name": "../x"}\n', b"x" * 70_000, b"[1]\n", b'{"end": 1}\n'])
def test_a_list_that_is_none_is_an_error(files: Files, guest: FakeFiles, line: bytes) -> None:
    guest.answers["/d"] = (200, line)
    with pytest.raises((AgentUnreachable, TransferFailed)):
        files.list("/d")
    with pytest.raises((AgentUnreachable, TransferFailed)):
        next(files.watch("/d"))


def test_a_list_that_breaks_off_or_has_no_end_is_an_error(
    files: Files, guest: FakeFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        files.write(f"/d/{name}", b"", parents=True)
    monkeypatch.setattr(files_module, "MAX_ENTRIES", 2)
    with pytest.raises(InvalidArgument, match="more than 2 entries"):
        files.list("/d")
    guest.break_off = "list"
    with pytest.raises(TransferFailed):
        files.list("/d")


# --- watching ------------------------------------------------------------------------------------------------------


def test_a_watch_tells_what_happens_until_it_is_closed(files: Files, guest: FakeFiles) -> None:
    with files.watch("/", recursive=True) as events:
        assert guest.watching == 1
        for event in ({"type": "moved", "path": "/b\udcff", "from": "/a"}, {"type": "idle"}, {"type": "overflow"}):
            guest_event(guest, event)
        first, second = next(events), next(events)
        assert (first.type, first.path, first.source) == (FileEventType.MOVED, "/b\udcff", "/a")
        assert second.type is FileEventType.OVERFLOW
    wait_until(lambda: guest.watching == 0)


def test_a_watch_ends_with_its_directory(files: Files, guest: FakeFiles) -> None:
    events = files.watch("/")
    guest_event(guest, {"type": "deleted", "path": "/x"})
    guest_event(guest, {"end": True})
    assert [event.path for event in events] == ["/x"]
    events.close()
    events.close()


def test_a_watch_that_breaks_off_is_an_error(files: Files, guest: FakeFiles) -> None:
    guest.break_off = "watch"
    with pytest.raises(TransferFailed), files.watch("/") as events:
        next(events)


@pytest.mark.anyio
async def test_waiting_for_an_event_may_be_cancelled_and_go_on(guest: FakeFiles) -> None:
    async def test(files: AsyncFiles) -> None:
        watch = files.watch("/")
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.to_thread(wait_until, lambda: guest.watching == 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        guest_event(guest, {"type": "created", "path": "/x"})
        assert (await anext(watch)).path == "/x"
        await watch.aclose()
        await watch.aclose()

    await asynchronously(test)


def test_leaving_a_stream_stops_the_guest(files: Files, guest: FakeFiles) -> None:
    files.write("/f", bytes(8 << 20))
    for _ in range(5):
        for chunk in files.stream("/f"):
            assert chunk
            break
    stream = files.stream("/f")
    next(stream)
    stream.close()
    assert list(stream) == []
    assert files.stat("/f").size == 8 << 20


# --- Files is AsyncFiles, waited for -------------------------------------------------------------------------------

FACES: dict[object, object] = {AsyncWatch: Watch}


def public(cls: type) -> dict[str, Any]:
    return {name: value for name, value in vars(cls).items() if not name.startswith("_")}


def test_both_have_the_same_methods() -> None:
    assert public(Files).keys() == public(AsyncFiles).keys()


@pytest.mark.parametrize("name", sorted(public(Files)))
def test_a_method_has_the_same_signature_in_both(name: str) -> None:
    sync, asynchronous = public(Files)[name], public(AsyncFiles)[name]
    assert list(inspect.signature(sync).parameters.values()) == list(
        inspect.signature(asynchronous).parameters.values()
    )
    returned, wanted = (typing.get_type_hints(function)["return"] for function in (sync, asynchronous))
    if name not in ("open", "stream"):  # what these return is of each world
        assert returned == FACES.get(wanted, wanted)
    assert inspect.iscoroutinefunction(asynchronous) == (name not in ("stream", "watch"))
    assert not inspect.iscoroutinefunction(sync)
    assert inspect.getdoc(sync) and inspect.getdoc(asynchronous)
