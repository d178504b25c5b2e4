"""Packing files and directories of this machine for a guest, and the way there and back."""

from __future__ import annotations

import io
import os
import socket
import stat
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from squib.errors import InvalidArgument, NoSuchFile, NotADirectory, TransferFailed
from squib.sdk.transfer.pack import Packing, measure
from squib.sdk.transfer.unpack import unpack
from tests.fakes.trees import snapshot


def packed(directory: Path) -> bytes:
    return b"".join(Packing(str(directory)).chunks())


def members(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: member for member in tar}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "file").write_bytes(b"content")
    (root / "sub" / "link").symlink_to("../missing")
    (root / "again").hardlink_to(root / "sub" / "file")
    return root


def test_a_directory_is_packed_with_what_is_below_it(tree: Path) -> None:
    (tree / "sub" / "file").chmod(0o4751)
    os.mkfifo(tree / "fifo")
    os.utime(tree / "sub" / "file", ns=(0, 1_000_000_007))
    found = members(packed(tree))
    assert set(found) == {".", "sub", "sub/file", "sub/link", "again", "fifo"}
    assert found["sub/link"].issym() and found["sub/link"].linkname == "../missing"
    assert found["fifo"].isfifo()
    file, again = found["sub/file"], found["again"]
    assert {file.islnk(), again.islnk()} == {True, False}
    assert {file.linkname, again.linkname} == {"", again.name if file.islnk() else file.name}
    assert file.mode == again.mode == 0o4751
    assert file.pax_headers["mtime"] == "1.000000007"
    assert (file.uid, file.gid) == (os.getuid(), os.getgid())


def test_a_directory_that_is_not_there_or_none_is_said(tree: Path) -> None:
    for function in (lambda path: measure(str(path)), packed):
        with pytest.raises(NoSuchFile, match="missing: No such file or directory, on this machine"):
            function(tree / "missing")
        with pytest.raises(NotADirectory, match="again: Not a directory"):
            function(tree / "again")


def test_sockets_are_left_out_and_said(tree: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tree / "s"))
        packing = Packing(str(tree))
        assert "s" not in members(b"".join(packing.chunks()))
    assert packing.left_out == [f"{tree}/s: a socket or a device"]


def test_what_is_packed_is_counted_and_can_be_measured_before(tree: Path) -> None:
    (tree / "large").write_bytes(bytes(1 << 20))
    packing = Packing(str(tree))
    counts = [(packing.entries, packing.bytes) for _ in packing.chunks()]
    assert counts == sorted(counts) and any(1 << 18 <= size < 1 << 20 for _, size in counts)
    assert (packing.entries, packing.bytes) == (6, (1 << 20) + 7)
    assert measure(str(tree)) == (1 << 20) + 7


def test_chunks_are_of_a_good_size_and_files_never_whole_in_memory(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / str(number)).write_bytes(b"x" * 100)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(64 << 20)
    tracemalloc.start()
    try:
        sizes = [len(chunk) for chunk in Packing(str(tmp_path)).chunks()]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(sizes) / len(sizes) > 200_000 and max(sizes) <= 300_000
    assert peak < 4 << 20


# Files that change meanwhile


def _while_reading(file: Path, work: Callable[[], object]) -> bytes:
    """The archive of the directory of ``file``, which is alone there and read in more than one chunk."""
    packing = Packing(str(file.parent))
    chunks = packing.chunks()
    data = next(chunks) + next(chunks)
    assert 0 < packing.bytes < 1 << 20
    work()
    return data + b"".join(chunks)


def test_a_file_that_shrinks_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(bytes(1 << 20))
    with pytest.raises(TransferFailed, match=r"f shrank while it was read, from 1048576 to 300000 bytes"):
        _while_reading(file, lambda: os.truncate(file, 300_000))


def test_a_file_that_grows_is_cut(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(bytes(1 << 20))
    data = _while_reading(file, lambda: os.truncate(file, 2 << 20))
    assert members(data)["f"].size == 1 << 20


@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "gone"])
def test_a_file_that_something_else_replaces_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """It is replaced after its directory has been read and before it is opened."""
    (tmp_path / "secret").write_text("mine")
    file = tmp_path / "tree" / "f"
    file.parent.mkdir()
    file.write_text("content")
    real = os.open

    def open_(path: str, flags: int, *args: int, dir_fd: int | None = None) -> int:
        if path == "f":
            file.unlink()
            if kind == "link":
                file.symlink_to("../secret")
            elif kind == "fifo":
                os.mkfifo(file)
            elif kind == "directory":
                file.mkdir()
        return real(path, flags, *args, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", open_)
    packing = Packing(str(file.parent))
    assert set(members(b"".join(packing.chunks()))) == {"."}
    assert packing.left_out == [f"{file}: it was removed or replaced during packing"]


def test_a_directory_that_a_link_replaces_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("mine")
    directory = tmp_path / "tree" / "d"
    directory.mkdir(parents=True)
    real = os.open

    def open_(path: str, flags: int, *args: int, dir_fd: int | None = None) -> int:
        if path == "d":
            directory.rmdir()
            directory.symlink_to("../outside")
        return real(path, flags, *args, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", open_)
    assert set(members(packed(directory.parent))) == {".", "d"}


def test_trees_that_are_too_deep_are_refused(tmp_path: Path) -> None:
    deep = tmp_path / "tree"
    for _ in range(100):
        deep = deep / "d"
    deep.mkdir(parents=True)
    (tmp_path / "back").mkdir()
    assert unpack(io.BytesIO(packed(tmp_path / "tree")), tmp_path / "back").entries == 101
    (deep / "d").mkdir(parents=True)
    with pytest.raises(InvalidArgument, match="the limit is 100 nested directories"):
        packed(tmp_path / "tree")


# There and back


def test_a_tree_comes_back_as_it_was(tree: Path, tmp_path: Path) -> None:
    odd = (b"\xff\xfe", "ü\n\t".encode(), b" ", b"-x", b"\\", "\u202e".encode(), b"n" * 255, b"*")
    for name in odd:
        with open(os.fsencode(tree) + b"/" + name, "wb") as file:  # noqa: PTH123 (bytes)
            file.write(name)
    os.utime(tree / "sub", ns=(0, -1_500_000_001))
    os.utime(tree / "again", ns=(0, (1 << 33) * 10**9 + 1))
    back = tmp_path / "back"
    back.mkdir()
    packing = Packing(str(tree))
    done = unpack(io.BytesIO(b"".join(packing.chunks())), back, new_target=True)
    assert (done.entries, done.bytes) == (packing.entries, packing.bytes)
    assert snapshot(back) == snapshot(tree)
    assert (back / "again").samefile(back / "sub" / "file")


_names = st.binary(min_size=1, max_size=12).filter(
    lambda name: not {0, ord("/")} & set(name) and name not in (b".", b"..")
)
_file = st.tuples(st.just("file"), st.binary(max_size=2000), st.integers(0, 0o777), st.integers(-(10**10), 10**19))
_link = st.tuples(st.just("link"), _names)
_trees = st.recursive(
    st.dictionaries(_names, _file | _link, max_size=4),
    lambda below: st.dictionaries(_names, _file | _link | below, max_size=4),
    max_leaves=12,
)


def _grow(place: bytes, tree: dict[bytes, object]) -> None:
    os.mkdir(place)  # noqa: PTH102 (bytes)
    for name, what in tree.items():
        path = place + b"/" + name
        match what:
            case ("file", bytes(content), int(mode), int(mtime_ns)):
                with open(path, "wb") as file:  # noqa: PTH123 (bytes)
                    file.write(content)
                os.chmod(path, mode | stat.S_IRUSR)  # noqa: PTH101 (bytes)
                os.utime(path, ns=(0, mtime_ns))
            case ("link", bytes(target)):
                os.symlink(target, path)  # noqa: PTH211 (bytes)
            case dict():
                _grow(path, what)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=_trees)
def test_any_tree_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, tree: dict[bytes, object]) -> None:
    place = tmp_path_factory.mktemp("trip")
    _grow(os.fsencode(place / "tree"), tree)
    (place / "back").mkdir()
    unpack(io.BytesIO(packed(place / "tree")), place / "back", new_target=True)
    assert snapshot(place / "back") == snapshot(place / "tree")
