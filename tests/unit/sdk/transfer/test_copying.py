"""Copying to a guest and from it: where things go, what is kept, and that nothing is left half done."""

import asyncio
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from squib.errors import (
    ArchiveRefused,
    DiskFull,
    FileError,
    InvalidArgument,
    NoSuchFile,
    NotADirectory,
    NotAFile,
    PermissionDenied,
    TransferFailed,
)
from squib.models import Progress
from squib.sdk.aio import AsyncVM
from squib.sdk.syncfiles import Files
from squib.sdk.transfer import download as downloads
from squib.sdk.vm import VM
from tests.fakes.files import FakeFiles
from tests.fakes.served import Served
from tests.unit.sdk.test_files import wait_until

pytestmark = pytest.mark.slow  # through an engine and a guest

MTIME_NS = 1_234_567_890_500_000_000  # more than the tar library of the fake agent keeps is tested on VMs


@pytest.fixture
def guest(served: Served, tmp_path: Path) -> FakeFiles:
    (tmp_path / "guest").mkdir()
    served.agent.files = FakeFiles(tmp_path / "guest")
    return served.agent.files


@pytest.fixture
def files(guest: FakeFiles) -> Files:
    return VM.from_id("web").files


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory of this machine."""
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


def make_tree(root: Path) -> Path:
    """A directory with links, modes, times, and names of any bytes."""
    (root / "sub" / "empty").mkdir(parents=True)
    for name in ("plain", "a b", "new\nline", "\udcff\udcfe", "-rf", "sub/é"):
        (root / name).write_bytes(name.encode("utf-8", "surrogateescape") * 100)
        (root / name).chmod(0o640)
    (root / "run").write_bytes(b"")
    (root / "run").chmod(0o755)
    (root / "link").symlink_to("sub/é")
    (root / "hard").hardlink_to(root / "plain")
    for path in sorted(root.rglob("*"), reverse=True):
        os.utime(path, ns=(MTIME_NS, MTIME_NS), follow_symlinks=False)
    root.chmod(0o750)
    os.utime(root, ns=(MTIME_NS, MTIME_NS))
    return root


def described(root: Path) -> dict[str, object]:
    """All of a tree that a copy keeps."""
    tree: dict[str, object] = {}
    for path in [root, *root.rglob("*")]:
        status = path.lstat()
        kind = stat.S_IFMT(status.st_mode)
        content: object = path.read_bytes() if stat.S_ISREG(kind) else None
        if stat.S_ISLNK(kind):
            content = path.readlink()
        mode = 0 if stat.S_ISLNK(kind) else stat.S_IMODE(status.st_mode)
        tree[str(path.relative_to(root))] = (
            kind,
            mode,
            status.st_mtime_ns,
            content,
            stat.S_ISDIR(kind) or status.st_nlink,
        )
    return tree


# --- what is kept --------------------------------------------------------------------------------------------------


def test_a_tree_comes_back_as_it_went(files: Files, guest: FakeFiles, here: Path) -> None:
    tree = make_tree(here / "tree")
    files.upload(tree, "/copy")
    assert described(guest.at("/copy")) == described(tree)
    files.download("/copy", here / "back")
    assert described(here / "back") == described(tree)


def test_a_file_keeps_mode_and_time(files: Files, guest: FakeFiles, here: Path) -> None:
    source = here / "\udcff\n"
    source.write_bytes(os.urandom(3 << 20))
    source.chmod(0o751)
    os.utime(source, ns=(MTIME_NS, MTIME_NS))
    files.upload(source, b"/\xfe")
    files.download(b"/\xfe", here / "back")
    for copy in (guest.at("/\udcfe"), here / "back"):
        status = copy.stat()
        assert (copy.read_bytes(), stat.S_IMODE(status.st_mode)) == (source.read_bytes(), 0o751)
        assert status.st_mtime_ns == MTIME_NS


def test_owner_and_mode_can_be_chosen(files: Files, guest: FakeFiles, here: Path) -> None:
    (here / "f").write_bytes(b"x")
    make_tree(here / "d")
    files.upload([here / "f", here / "d"], "/", owner="me", mode=0o600)
    assert guest.owners == {"/f": "me", "/d": "me"}
    assert stat.S_IMODE(guest.at("/f").stat().st_mode) == 0o600
    assert stat.S_IMODE(guest.at("/d/run").stat().st_mode) == 0o755
    files.upload([here / "f", here / "d"], "/", keep_owner=True)
    assert guest.owners == {"/f": f"{os.getuid()}:{os.getgid()}", "/d": "archive"}


def test_what_a_guest_says_of_modes_is_not_believed(files: Files, guest: FakeFiles, here: Path) -> None:
    guest.at("/f").write_bytes(b"x")
    guest.at("/f").chmod(0o6777)
    files.download("/f", here / "f")
    assert stat.S_IMODE((here / "f").stat().st_mode) == 0o777


def test_progress_is_told_in_bytes(files: Files, here: Path) -> None:
    (here / "f").write_bytes(bytes(1 << 20))
    (here / "d").mkdir()
    (here / "d" / "g").write_bytes(bytes(1 << 19))
    for work, step, total in [
        (lambda tell: files.upload(here / "f", "/f", on_progress=tell), str(here / "f"), 1 << 20),
        (lambda tell: files.download("/f", here / "g", on_progress=tell), "/f", 1 << 20),
        (lambda tell: files.upload(here / "d", "/d", on_progress=tell), str(here / "d"), 1 << 19),
        (lambda tell: files.download("/d", here / "e", on_progress=tell), "/d", None),
    ]:
        told: list[Progress] = []
        work(told.append)
        assert {(each.step, each.total, each.unit) for each in told} == {(step, total, "bytes")}
        done = [each.done for each in told]
        assert done == sorted(done) and done[0] == 0 and done[-1] >= (total or 1 << 19)


# --- where things go -----------------------------------------------------------------------------------------------


@pytest.fixture(params=["upload", "download"])
def copy(request: pytest.FixtureRequest, files: Files, guest: FakeFiles, here: Path) -> Callable[..., list[str]]:
    """Copies in one direction and returns the resulting files: ``copy("f", "d/")``."""
    make_sources(here if request.param == "upload" else guest.root)
    target_root = guest.root if request.param == "upload" else here
    (target_root / "dir" / "src").mkdir(parents=True)
    (target_root / "dir" / "src" / "old").touch()
    (target_root / "file").write_bytes(b"old")
    (target_root / "to_dir").symlink_to("dir")
    (target_root / "to_file").symlink_to("file")

    def run(sources: str | list[str], target: str) -> list[str]:
        named = [sources] if isinstance(sources, str) else sources
        if request.param == "upload":
            local = [f"{here}/{source}" for source in named]
            files.upload(local[0] if isinstance(sources, str) else local, f"/{target}")
        else:
            remote = [f"/{source}" for source in named]
            files.download(remote[0] if isinstance(sources, str) else remote, f"{here}/{target}")
        assert not list(target_root.rglob(".squib*"))
        return sorted(str(path.relative_to(target_root)) for path in target_root.rglob("*") if path.is_file())

    return run


def make_sources(root: Path) -> None:
    (root / "src" / "deep").mkdir(parents=True)
    (root / "src" / "deep" / "x").write_bytes(b"x")
    (root / "f").write_bytes(b"f")
    (root / "g").write_bytes(b"g")
    (root / "link").symlink_to("src")


BEFORE = {"dir/src/old", "file", "to_file"}


@pytest.mark.parametrize(
    ("sources", "target", "new"),
    [
        ("f", "dir", {"dir/f"}),
        ("f", "dir/", {"dir/f"}),
        ("f", "to_dir", {"dir/f"}),
        ("f", "new", {"new"}),
        ("f", "dir/new", {"dir/new"}),
        ("f", "file", set()),
        (["f", "g"], "dir", {"dir/f", "dir/g"}),
        (["f", "src"], "dir", {"dir/f", "dir/src/deep/x"}),
        ("src", "dir", {"dir/src/deep/x"}),
        ("src/", "dir", {"dir/src/deep/x"}),
        ("src/.", "dir", {"dir/deep/x"}),
        ("src", "new", {"new/deep/x"}),
        ("src", "new/", {"new/deep/x"}),
        ("src/.", "new", {"new/deep/x"}),
        ("link", "new", {"new/deep/x"}),
        ("link", "dir", {"dir/link/deep/x"}),
        ("src/deep/x", "dir", {"dir/x"}),
    ],
)
def test_things_go_where_cp_puts_them(
    copy: Callable[..., list[str]], sources: Any, target: str, new: set[str], guest: FakeFiles, here: Path
) -> None:
    found = {
        path for path in copy(sources, target) if not path.startswith(("src/", "f", "g", "link/")) or path == "file"
    }
    through_links = {path for path in found if path.startswith("to_dir/")}
    assert found - through_links == BEFORE | new


def test_a_link_as_target_is_written_through(copy: Callable[..., list[str]], guest: FakeFiles, here: Path) -> None:
    copy("f", "to_file")
    root = guest.root if (guest.root / "dir").exists() else here
    assert (root / "to_file").is_symlink() and (root / "file").read_bytes() == b"f"


@pytest.mark.parametrize(
    ("sources", "target", "error"),
    [
        ("f", "new/", NotADirectory),
        (["f", "g"], "new", NotADirectory),
        (["f", "g"], "file", NotADirectory),
        ("src", "file", NotADirectory),
        ("nosuch", "dir", NoSuchFile),
        (["f", "nosuch"], "dir", NoSuchFile),
        ([], "dir", InvalidArgument),
    ],
)
def test_what_cannot_go_there_changes_nothing(
    copy: Callable[..., list[str]], sources: Any, target: str, error: type[Exception], guest: FakeFiles, here: Path
) -> None:
    def everything() -> list[tuple[str, int]]:
        return sorted((str(path), path.lstat().st_mtime_ns) for root in (guest.root, here) for path in root.rglob("*"))

    before = everything()
    with pytest.raises(error):
        copy(sources, target)
    assert [path for path, _ in everything()] == [path for path, _ in before]


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_missing_parent_is_made_in_the_guest_only(files: Files, guest: FakeFiles, here: Path, kind: str) -> None:
    for path in (here / "source", guest.at("/source")):
        path.mkdir() if kind == "directory" else path.write_bytes(b"x")
    with pytest.raises(NoSuchFile):
        files.download("/source", here / "nosuch" / "new")
    with pytest.raises(NoSuchFile):
        files.upload(here / "source", "/nosuch/new", parents=False)
    assert not (here / "nosuch").exists() and not guest.at("/nosuch").exists()
    files.upload(here / "source", "/nosuch/new")
    assert guest.at("/nosuch/new").exists()


def test_what_is_neither_file_nor_directory_is_refused(files: Files, guest: FakeFiles, here: Path) -> None:
    os.mkfifo(here / "fifo")
    os.mkfifo(guest.at("/fifo"))
    for work in (
        lambda: files.upload(here / "fifo", "/x"),
        lambda: files.upload("/dev/null", "/x"),
        lambda: files.download("/fifo", here / "x"),
        lambda: files.download("/f", "/dev/null"),
        lambda: files.download("/f", here / "fifo"),
    ):
        guest.at("/f").write_bytes(b"x")
        with pytest.raises(NotAFile):
            work()
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)  # noqa: PTH116


# --- what breaks off -----------------------------------------------------------------------------------------------


def test_a_directory_that_breaks_off_leaves_nothing_here(files: Files, guest: FakeFiles, here: Path) -> None:
    make_tree(guest.at("/tree"))
    guest.break_off = "tar"
    with pytest.raises(TransferFailed, match="was interrupted"):
        files.download("/tree", here / "new")
    assert os.listdir(here) == []  # noqa: PTH208


def test_a_hostile_archive_does_not_get_out(files: Files, guest: FakeFiles, here: Path) -> None:
    guest.at("/d").mkdir()
    guest.at("/d/out").symlink_to("/etc")
    with pytest.raises(ArchiveRefused, match="out' in the archive"):
        files.download("/d", here / "new")
    assert os.listdir(here) == []  # noqa: PTH208
    files.download("/d", here / "new", unsafe_links=True)
    assert (here / "new" / "out").readlink() == Path("/etc")


def test_a_source_that_cannot_be_read_to_its_end_leaves_nothing_in_the_guest(
    files: Files, guest: FakeFiles, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "d").mkdir()
    for name in ("f", "d/f"):
        (here / name).write_bytes(bytes(4 << 20))
    real, reads = os.read, 0

    def read(fd: int, size: int) -> bytes:
        nonlocal reads
        reads += (its_own := Path(f"/proc/self/fd/{fd}").readlink().name == "f")  # not what the engine reads meanwhile
        if its_own and reads == 5:
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, size)

    monkeypatch.setattr(os, "read", read)
    for source in ("f", "d"):
        reads = 0
        with pytest.raises(TransferFailed, match="Input/output error"):
            files.upload(here / source, "/new")
        wait_until(lambda: guest.left_over() == [])
    assert os.listdir(guest.root) == []  # noqa: PTH208


@pytest.mark.parametrize(
    ("number", "error"), [(errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EACCES, PermissionDenied)]
)
def test_a_disk_that_is_full_here_leaves_nothing_here(
    files: Files, guest: FakeFiles, here: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[FileError]
) -> None:
    guest.at("/f").write_bytes(b"x" * (4 << 20))

    real = os.write

    def write(fd: int, data: bytes) -> int:
        if len(data) >= downloads._WRITE_BYTES:
            raise OSError(number, os.strerror(number))
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(error, match=r"here/f") as caught:
        files.download("/f", here / "f")
    assert "on this machine" in caught.value.message
    assert os.listdir(here) == []  # noqa: PTH208


def test_a_file_does_not_fill_the_disk_here(
    files: Files, guest: FakeFiles, here: Path, filling_disk: Iterator[int]
) -> None:
    with guest.at("/f").open("wb") as file:
        file.truncate(200 << 20)
    with pytest.raises(DiskFull, match="too little free space"):
        files.download("/f", here / "f")
    assert not list(filling_disk) and os.listdir(here) == []  # noqa: PTH208


def test_an_empty_target_is_not_this_directory(
    files: Files, guest: FakeFiles, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(guest.root / "d")
    monkeypatch.chdir(here)
    with pytest.raises(InvalidArgument, match="empty"):
        files.download("/d", "")
    assert os.listdir(here) == []  # noqa: PTH208


def test_an_upload_that_fails_closes_its_file(files: Files, guest: FakeFiles, here: Path) -> None:
    (here / "f").write_bytes(b"data")

    def fail(_: Progress) -> None:
        raise ZeroDivisionError

    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    for _ in range(20):
        with pytest.raises(InvalidArgument):
            files.upload(here / "f", "/f", mode=-1)
        with pytest.raises(ZeroDivisionError):
            files.upload(here / "f", "/f", on_progress=fail)
    assert len(os.listdir("/proc/self/fd")) < len(before) + 10  # noqa: PTH208


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["file", "tree"])
@pytest.mark.parametrize("direction", ["up", "down"])
async def test_a_cancelled_copy_leaves_nothing(guest: FakeFiles, here: Path, kind: str, direction: str) -> None:
    source_root, target_root = (here, guest.root) if direction == "up" else (guest.root, here)
    (source_root / "d").mkdir()
    for name in ("f", "d/f"):
        (source_root / name).write_bytes(bytes(16 << 20))
    source = "f" if kind == "file" else "d"

    async with asyncio.timeout(20):
        vm = await AsyncVM.from_id("web")
        begun = asyncio.Event()

        def tell(progress: Progress) -> None:
            if progress.done:
                begun.set()

        work = (
            vm.files.upload(here / source, "/new", on_progress=tell)
            if direction == "up"
            else vm.files.download(f"/{source}", here / "new", on_progress=tell)
        )
        task = asyncio.create_task(work)
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await vm.close()
    wait_until(lambda: not any(target_root.iterdir()))
