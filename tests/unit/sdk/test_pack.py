"""Packing files and directories of this machine for a guest, and the way there and back."""

from __future__ import annotations

import io
import os
import socket
import stat
import tarfile
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from squib.errors import InvalidArgument, NoSuchFile, NotADirectory, TransferFailed
from squib.sdk.pack import CONTENTS, Source, Total, measure, pack
from squib.sdk.unpack import Unpacked, unpack
from tests.fakes.trees import snapshot


def packed(*sources: Source) -> bytes:
    return b"".join(pack(sources))


def members(*sources: Source) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(packed(*sources))) as tar:
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
    found = members(Source.of(tree))
    assert set(found) == {"tree", "tree/sub", "tree/sub/file", "tree/sub/link", "tree/again", "tree/fifo"}
    assert found["tree/sub/link"].issym() and found["tree/sub/link"].linkname == "../missing"
    assert found["tree/fifo"].isfifo()
    file, again = found["tree/sub/file"], found["tree/again"]
    assert {file.islnk(), again.islnk()} == {True, False}
    assert {file.linkname, again.linkname} == {"", again.name if file.islnk() else file.name}
    assert file.mode == again.mode == 0o4751
    assert file.pax_headers["mtime"] == "1.000000007"
    assert (file.uid, file.gid) == (os.getuid(), os.getgid())


def test_the_contents_of_a_directory_have_names_without_it(tree: Path) -> None:
    assert set(members(Source(tree, CONTENTS))) == {".", "sub", "sub/file", "sub/link", "again"}


def test_sources_have_their_own_names_or_given_ones(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree / "sub")
    assert Source.of("file").name == "file"
    assert Source.of("../sub/").name == "sub"
    assert Source.of(".").name == "sub"
    assert Source.of("..").name == "tree"
    assert set(members(Source(Path("file"), "other"), Source.of("../again"))) == {"other", "again"}
    with pytest.raises(InvalidArgument, match="/ has no name of its own"):
        Source.of("/")


def test_two_sources_of_one_name_are_refused(tree: Path) -> None:
    with pytest.raises(InvalidArgument, match="two of the sources are called 'file'"):
        packed(Source.of(tree / "sub" / "file"), Source(tree / "again", "file"))


def test_a_source_that_is_not_there_or_no_directory_is_said(tree: Path) -> None:
    for function in (measure, lambda sources: packed(*sources)):
        with pytest.raises(NoSuchFile, match="missing: No such file or directory, on this machine"):
            function([Source.of(tree / "missing")])
        with pytest.raises(NotADirectory, match="again is not a directory"):
            function([Source(tree / "again", CONTENTS)])


def test_a_source_that_is_a_link_is_followed_and_links_below_are_not(tree: Path) -> None:
    (tree.parent / "link").symlink_to(tree)
    (tree.parent / "file-link").symlink_to(tree / "again")
    found = members(Source.of(tree.parent / "link"), Source.of(tree.parent / "file-link"))
    assert found["link"].isdir() and found["link/sub/file"].size + found["link/again"].size == 7
    assert found["link/sub/link"].issym()


def test_sockets_are_left_out_and_said(tree: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tree / "s"))
        told: list[str] = []
        data = b"".join(pack([Source.of(tree)], on_left_out=told.append))
    assert told == [f"{tree}/s: a socket or a device"]
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert "tree/s" not in tar.getnames()


def test_measure_tells_what_will_be_packed(tree: Path) -> None:
    (tree / "large").write_bytes(bytes(1 << 20))
    told: list[tuple[int, int]] = []
    b"".join(pack([Source.of(tree)], on_progress=lambda *done: told.append(done)))
    assert measure([Source.of(tree)]) == Total(entries=6, bytes=(1 << 20) + 7)
    assert told == sorted(told) and told[-1] == (6, (1 << 20) + 7)
    assert any(1 << 18 <= size < 1 << 20 for _, size in told)


def test_chunks_are_of_a_good_size_and_files_never_whole_in_memory(tmp_path: Path) -> None:
    for number in range(2000):
        (tmp_path / str(number)).write_bytes(b"x" * 100)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(64 << 20)
    sizes = []
    tracemalloc.start()
    try:
        sizes = [len(chunk) for chunk in pack([Source(tmp_path, CONTENTS)])]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(sizes) / len(sizes) > 200_000 and max(sizes) <= 300_000
    assert peak < 4 << 20


# Files that change meanwhile


def _while_packing(sources: Sequence[Source], work: Callable[[], object]) -> bytes:
    """The archive, where ``work`` is done after its first chunk."""
    archive = pack(sources)
    data = next(archive)
    work()
    return data + b"".join(archive)


def test_a_file_that_shrinks_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(bytes(1 << 20))
    with pytest.raises(TransferFailed, match=r"f has shrunk while it was read, from 1048576 bytes to 300000"):
        _while_packing([Source.of(file)], lambda: os.truncate(file, 300_000))


def test_a_file_that_grows_is_cut(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(bytes(1 << 20))
    data = _while_packing([Source.of(file)], lambda: os.truncate(file, 2 << 20))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert [member.size for member in tar] == [1 << 20]


@pytest.mark.parametrize("kind", ["link", "fifo", "gone", "directory"])
def test_a_file_that_something_else_replaces_is_left_out(tmp_path: Path, kind: str) -> None:
    (tmp_path / "secret").write_text("mine")
    tree = tmp_path / "tree"
    tree.mkdir()
    first, second = tree / "1", tree / "2"
    for file in (first, second):
        file.write_bytes(bytes(1 << 20))

    def replace() -> None:
        # One of the two is on its way; the other one has been listed, at the most.
        for file in (first, second):
            file.unlink()
            if kind == "link":
                file.symlink_to("../secret")
            elif kind == "fifo":
                os.mkfifo(file)
            elif kind == "directory":
                file.mkdir()

    archive = pack([Source.of(tree)], on_left_out=(told := []).append)
    data = next(archive)
    data += next(archive)
    replace()
    data += b"".join(archive)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        files = [member for member in tar if member.isfile()]
    assert [member.size for member in files] == [1 << 20]
    assert len(told) <= 1


def test_a_directory_that_a_link_replaces_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("mine")
    tree = tmp_path / "tree"
    (tree / "d").mkdir(parents=True)

    def replace(entries: int, size: int) -> None:
        if entries == 2:  # the directory has been told, and is not open yet
            (tree / "d").rmdir()
            (tree / "d").symlink_to("../outside")

    data = b"".join(pack([Source.of(tree)], on_progress=replace))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == ["tree", "tree/d"]


def test_trees_that_are_too_deep_are_refused(tmp_path: Path) -> None:
    deep = tmp_path / "tree"
    for _ in range(99):
        deep = deep / "d"
    deep.mkdir(parents=True)
    assert unpack(io.BytesIO(packed(Source.of(tmp_path / "tree"))), tmp_path).entries == 100
    (deep / "d" / "d").mkdir(parents=True)
    with pytest.raises(InvalidArgument, match="more than 100 directories deep"):
        packed(Source.of(tmp_path / "tree"))


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
    done = unpack(io.BytesIO(packed(Source(tree, CONTENTS))), back, new_target=True)
    assert done == Unpacked(*(getattr(measure([Source(tree, CONTENTS)]), name) for name in ("entries", "bytes")))
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
    source = Source(place / "tree", CONTENTS)
    unpack(io.BytesIO(packed(source)), place / "back", new_target=True)
    assert snapshot(place / "back") == snapshot(place / "tree")
