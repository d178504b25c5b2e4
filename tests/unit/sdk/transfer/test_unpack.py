"""Unpacking what a guest sends: nothing lands outside the target, and the host is not exhausted."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import shutil
import stat
import tarfile
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from squib.errors import (
    ArchiveRefused,
    DiskFull,
    NoSuchFile,
    NotADirectory,
    PermissionDenied,
    SquibError,
    TransferFailed,
)
from squib.sdk.result import CopyResult
from squib.sdk.transfer.unpack import Limits, unpack
from tests.fakes.trees import BLOCK, END, archive, damaged, header, member, padded, records, snapshot

DIRECTORY, SYMLINK, HARD_LINK = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
LONG_NAME, LONG_LINK = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A target with something around it that an archive must not touch."""
    surroundings = tmp_path / "home"
    target = surroundings / "target"
    target.mkdir(parents=True)
    (surroundings / "secret").write_text("mine")
    (surroundings / "target-2").mkdir()
    (surroundings / "target-2" / "file").write_text("mine too")
    (target / "own-link").symlink_to("../target-2")
    (target / "own-file").write_text("own")
    (target / "own-dir").mkdir()
    return target


def directory(name: str, mode: int = 0o755) -> bytes:
    return header(name, DIRECTORY, mode=mode)


def symlink(name: str, link: str) -> bytes:
    return header(name, SYMLINK, link=link)


def hard_link(name: str, link: str) -> bytes:
    return header(name, HARD_LINK, link=link)


def long(type_: bytes, value: bytes) -> bytes:
    return header("././@LongLink", type_, size=len(value) + 1) + padded(value + b"\0")


FILE = member("f", b"content")

HOSTILE = {
    "absolute name": (member("/etc/squib-test", b"x"), "'/etc/squib-test' in the archive: its path is absolute"),
    "absolute directory": (directory("/squib-test"), "absolute"),
    "absolute PAX name": (records(b"x", path=b"/squib-test") + FILE, "absolute"),
    "absolute GNU name": (long(LONG_NAME, b"/squib-test") + FILE, "absolute"),
    "climbing name": (member("../secret", b"x"), "'..'"),
    "climbing below": (member("own-dir/../../secret", b"x"), "'..'"),
    "climbing at the end": (directory("own-dir/.."), "'..'"),
    "climbing PAX name": (records(b"x", path=b"../secret") + FILE, "'..'"),
    "climbing GNU name": (long(LONG_NAME, b"../secret") + FILE, "'..'"),
    "climbing prefix": (damaged(header("secret"), 345, b".."), "'..'"),
    "no name": (damaged(header("f"), 0, b"\0"), "'' in the archive: invalid name"),
    "name with NUL": (records(b"x", path=b"f\0../../secret") + FILE, "invalid name"),
    "file called .": (member(".", b"x"), "not a directory"),
    "link called .": (symlink("./.", "own-dir"), "not a directory"),
    "file with a slash": (damaged(header("f/"), 156, b"0"), "not a directory"),
    "long name": (records(b"x", path=b"d/" * 2048 + b"f") + FILE, "more than 4096 bytes"),
    "long component": (records(b"x", path=b"n" * 256) + FILE, "more than 255 bytes"),
    "deep name": (records(b"x", path=b"d/" * 100 + b"f") + FILE, "the limit is 100 nested directories"),
    "through a link of its own": (symlink("l", "own-dir") + member("l/f", b"x"), "'l' is a symbolic link"),
    "directory through a link": (symlink("l", "own-dir") + directory("l/d"), "'l' is a symbolic link"),
    "directory over a link": (symlink("l", "own-dir") + directory("l"), "'l' is a symbolic link"),
    "through a link that is there": (member("own-link/file", b"x"), "'own-link' is a symbolic link"),
    "directory over a link that is there": (directory("own-link", 0o777), "'own-link' is a symbolic link"),
    "link through a link": (symlink("own-link/l", "x"), "'own-link' is a symbolic link"),
    "hard link through a link": (FILE + hard_link("own-link/h", "f"), "'own-link' is a symbolic link"),
    "hard link to below a link": (hard_link("h", "own-link/file"), "not an earlier file of the archive"),
    "hard link to outside": (hard_link("h", "../secret"), "not an earlier file of the archive"),
    "hard link to an absolute name": (FILE + hard_link("h", "/f"), "not an earlier file of the archive"),
    "hard link to what was there": (hard_link("h", "own-file"), "not an earlier file of the archive"),
    "hard link to a link": (symlink("l", "own-file") + hard_link("h", "l"), "not an earlier file of the archive"),
    "hard link to a link that may have a file's inode": (
        directory("d") + member("d/f") * 2 + symlink("d/l", "../own-file") + hard_link("h", "d/l"),
        "not an earlier file of the archive",
    ),
    "hard link to a directory": (directory("d") + hard_link("h", "d"), "not an earlier file of the archive"),
    "hard link to nothing": (hard_link("h", "missing/f"), "not an earlier file of the archive"),
    "hard link to itself": (hard_link("h", "h"), "not an earlier file of the archive"),
    "hard link to .": (hard_link("h", "."), "not an earlier file of the archive"),
    "hard link with NUL": (
        FILE + records(b"x", linkpath=b"f\0") + hard_link("h", "f"),
        "not an earlier file of the archive",
    ),
    "absolute link": (symlink("l", "/etc/passwd"), "leads out of the directory, to '/etc/passwd'"),
    "climbing link": (symlink("l", "../secret"), "leads out"),
    "climbing link below": (symlink("own-dir/l", "../../secret"), "leads out"),
    "link that goes down, then up": (symlink("l", "own-dir/../../secret"), "leads out"),
    "link that climbs through another": (
        directory("d") + directory("d/e") + symlink("d/e/up", "../..") + symlink("l", "d/e/up/../secret"),
        "leads out",
    ),
    "long link": (
        symlink("l", "d/" * 49) + long(LONG_LINK, b"x" * 5000) + symlink("l2", "x"),
        "invalid symbolic link target",
    ),
    "empty link": (symlink("l", ""), "symbolic link target ''"),
    "link with NUL": (records(b"x", linkpath=b"f\0") + symlink("l", "f"), "invalid symbolic link target"),
    "character device": (header("null", tarfile.CHRTYPE), "'null' in the archive: it is a character device"),
    "block device": (header("sda", tarfile.BLKTYPE), "block device"),
    "FIFO": (header("fifo", tarfile.FIFOTYPE), "FIFO"),
    "GNU sparse file": (header("s", tarfile.GNUTYPE_SPARSE), "sparse"),
    "PAX sparse file": (records(b"x", GNU_sparse_major=b"1") + FILE, "sparse"),
    "star sparse file": (records(b"x", SCHILY_realsize=b"99999999999") + FILE, "sparse"),
    "unknown type": (header("v", b"V"), "unknown entry type 'V'"),
    "contiguous file": (header("c", tarfile.CONTTYPE), "unknown entry type '7'"),
    "link with content": (header("l", SYMLINK, link="f", size=512) + bytes(BLOCK), "512 bytes of content"),
    "directory with content": (header("d", DIRECTORY, size=1) + bytes(BLOCK), "1 bytes of content"),
    "wrong checksum": (header("f").replace(b"ustar\x0000", b"ustar\x0000", 1)[:-1] + b"x", "checksum"),
    "no checksum": (damaged(header("f"), 0, b"f")[:148] + bytes(8) + header("f")[156:], "checksum"),
    "old header": (damaged(header("f"), 257, bytes(8)), "in neither POSIX nor GNU format"),
    "garbage": (b"<html>" * 512, "not a tar archive"),
    "negative size": (damaged(header("f"), 124, b"\xff" * 12), "invalid size -1"),
    "negative octal size": (damaged(header("f"), 124, b"-0000000001\0"), "invalid number"),
    "size with underscore": (damaged(header("f"), 124, b"0000_000001\0"), "invalid number"),
    "huge size": (damaged(header("f"), 124, b"\x80\x7f" + b"\xff" * 10), "invalid size"),
    "PAX size that is none": (records(b"x", size=b"-5") + FILE, "invalid size '-5'"),
    "PAX size with a sign": (records(b"x", size=b"+5") + FILE, "invalid size '+5'"),
    "huge PAX size": (records(b"x", size=b"9" * 25) + FILE, "invalid size '999"),
    "time that is none": (records(b"x", mtime=b"NaN") + FILE, "invalid modification time 'NaN'"),
    "time too far": (records(b"x", mtime=b"9" * 13) + FILE, "invalid modification time"),
    "owner that is none": (records(b"x", uid=b"4294967295") + FILE, "invalid uid '4294967295'"),
    "negative owner": (damaged(header("f"), 108, b"\xff" * 8), "invalid owner -1:"),
    "large PAX header": (header("pax", b"x", size=(1 << 20) + 1), "the limit is 1048576"),
    "large global header": (header("pax", b"g", size=1 << 30), "the limit is 1048576"),
    "large GNU name": (header("L", LONG_NAME, size=1 << 30), "the limit is 1048576"),
    "PAX record without end": (header("x", b"x", size=9) + padded(b"99 path=f"), "cannot be read"),
    "PAX record of length 0": (header("x", b"x", size=9) + padded(b"0 path=f\n"), "cannot be read"),
    "PAX record with no length": (header("x", b"x", size=7) + padded(b"path=f\n"), "cannot be read"),
    "PAX record with no key": (header("x", b"x", size=5) + padded(b"5 =f\n"), "cannot be read"),
    "many headers before one": (records(b"x", path=b"f") * 9, "more than 8 extension headers"),
    "header of nothing": (records(b"x", path=b"f"), "in neither POSIX nor GNU format"),
    "something after the end": (END + FILE, "after its end marker"),
    "one zero block": (bytes(BLOCK) + FILE, "after its end marker"),
    "directory over a file": (FILE + directory("f"), "'f' is not a directory"),
    "file below a file": (FILE + member("f/g", b"x"), "'f' is not a directory"),
    "directory over a file that is there": (directory("own-file"), "'own-file' is not a directory"),
    "file over a directory": (directory("d") + member("d", b"x"), "a directory with this name exists"),
    "link over a directory": (directory("own-dir") + symlink("own-dir", "f"), "a directory with this name exists"),
    "hard link over a directory": (
        FILE + directory("own-dir") + hard_link("own-dir", "f"),
        "a directory with this name exists",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_is_refused_and_nothing_lands_outside(place: Path, case: str) -> None:
    data, message = HOSTILE[case]
    before = snapshot(place.parent, without=place)
    with pytest.raises(ArchiveRefused) as caught:
        unpack(archive(data), place)
    assert message in caught.value.message
    assert snapshot(place.parent, without=place) == before
    assert not list(place.rglob(".squib-*"))
    assert (place / "own-file").read_text() == "own"
    assert not Path("/squib-test").exists()


def test_a_name_in_an_error_is_one_line_that_steers_no_terminal(place: Path) -> None:
    with pytest.raises(ArchiveRefused) as caught:
        unpack(archive(member("../\x1b[2J\nhint: rm -rf ~\udcff", b"x")), place)
    assert "../\\x1b[2J\\nhint: rm -rf ~\\xff" in caught.value.message


@pytest.mark.parametrize("cut", [0, 1, 511, 512, 700, 1024, 1535, 1536, 2000, 2048])
def test_an_archive_that_breaks_off_is_refused_and_leaves_no_part_of_a_file(place: Path, cut: int) -> None:
    data = archive(member("f", b"x" * 600)).getvalue()
    assert len(data) == 512 + 1024 + 1024
    with pytest.raises(ArchiveRefused, match="is truncated"):
        unpack(io.BytesIO(data[:cut]), place)
    assert {path.name for path in place.iterdir()} - {"own-link", "own-file", "own-dir"} <= {"f"}
    assert not (place / "f").exists() or (place / "f").read_bytes() == b"x" * 600


def test_the_guests_own_error_is_told(place: Path) -> None:
    error = records(b"g", SQUIB_error=b"/srv/x: input/output\nerror")
    with pytest.raises(TransferFailed, match=r"could not complete the archive: /srv/x: input/output\\nerror"):
        unpack(archive(FILE, error), place)


def test_other_global_records_count_for_nothing(place: Path) -> None:
    unpack(archive(records(b"g", comment=b"c", path=b"../secret", size=b"1"), FILE), place)
    assert (place / "f").read_bytes() == b"content"


# Exhaustion


def test_a_bomb_is_refused_at_its_header(place: Path) -> None:
    bomb = damaged(header("bomb"), 124, b"\x80" + (1 << 50).to_bytes(11, "big"))
    with pytest.raises(DiskFull, match=r"'bomb' in the archive \(1125899906842624 bytes\) would leave too little free"):
        unpack(io.BytesIO(bomb), place)
    assert not (place / "bomb").exists()


def test_a_disk_that_fills_up_meanwhile_ends_it(place: Path, filling_disk: Iterator[int]) -> None:
    with pytest.raises(DiskFull):
        unpack(_Endless(header("f", size=2 << 30), bytes(1 << 18)), place)
    assert not list(filling_disk)
    assert [path.name for path in place.iterdir() if path.name.startswith(("f", "."))] == []


def test_inodes_are_not_used_up(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fstatvfs

    def fstatvfs(fd: int) -> os.statvfs_result:
        values = list(real(fd))
        values[5:8] = [10**6, 9_000, 9_000]
        return os.statvfs_result(values)

    monkeypatch.setattr(os, "fstatvfs", fstatvfs)
    with pytest.raises(DiskFull, match="inodes"):
        unpack(archive(FILE), place)


class _Endless:
    """``first``, then ``again`` for ever."""

    def __init__(self, first: bytes, again: bytes) -> None:
        self._pieces = self._all(first, again)

    def _all(self, first: bytes, again: bytes) -> Iterator[bytes]:
        yield first
        while True:
            yield again

    def read(self, size: int, /) -> bytes:
        return next(self._pieces)


def test_more_bytes_than_the_limit_are_refused_before_they_are_written(place: Path) -> None:
    data = archive(member("a", b"x" * 60), member("b", b"x" * 60))
    with pytest.raises(ArchiveRefused, match="more than 100 bytes"):
        unpack(data, place, limits=Limits(max_bytes=100))
    assert (place / "a").exists() and not (place / "b").exists()


def test_more_entries_than_the_limit_are_refused(place: Path) -> None:
    entries = [directory(f"d{number}") for number in range(11)]
    with pytest.raises(ArchiveRefused, match="more than 10 entries"):
        unpack(archive(*entries), place, limits=Limits(max_entries=10))
    assert unpack(archive(*entries[:10]), place, limits=Limits(max_entries=10)).entries == 10


def test_an_endless_stream_ends(place: Path) -> None:
    for again, message in (
        (records(b"g", comment=b"x" * 1000), "more than 8 extension headers"),
        (member("f", b"x"), "more than 100 entries"),
        (bytes(BLOCK), "after its end marker"),
    ):
        with pytest.raises(ArchiveRefused, match=message):
            unpack(_Endless(FILE, again), place, limits=Limits(max_entries=100))


def _peak(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_large_file_is_never_whole_in_memory(place: Path) -> None:
    size = 64 << 20
    source = io.BufferedReader(_Zeros(header("f", size=size), size + len(END)))
    assert _peak(lambda: unpack(source, place)) < 4 << 20
    assert (place / "f").stat().st_size == size


class _Zeros(io.RawIOBase):
    def __init__(self, first: bytes, then: int) -> None:
        self._first = first
        self._left = then

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if self._first:
            size = len(self._first)
            buffer[:size], self._first = self._first, b""
            return size
        size = min(self._left, len(buffer))
        buffer[:size] = bytes(size)
        self._left -= size
        return size


@pytest.mark.parametrize("type_", [tarfile.REGTYPE, DIRECTORY])
def test_what_is_remembered_of_an_entry_is_little(place: Path, type_: bytes) -> None:
    source = _Pieces(header(f"{number:080}", type_) for number in range(700))

    def refused() -> None:
        with pytest.raises(ArchiveRefused):
            unpack(source, place, limits=Limits(max_entries=600))

    assert _peak(refused) < 600 * 500 + (1 << 19)


@pytest.mark.slow
def test_too_many_entries_are_refused_with_bounded_memory(place: Path) -> None:
    """A tenth of the default limit and of the memory that it may take: what is kept is the same for each entry."""
    limit = Limits().max_entries // 10
    source = _Pieces(header(f"{number:080}") for number in range(2 * limit))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ArchiveRefused, match="more than 50000 entries"):
        unpack(source, place, limits=Limits(max_entries=limit))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 15 << 10


class _Pieces:
    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces

    def read(self, size: int, /) -> bytes:
        return next(self._pieces, b"")


# What is unpacked


def test_files_directories_and_links_are_made(place: Path) -> None:
    before = snapshot(place.parent, without=place)
    data = archive(
        directory("d", 0o750),
        member("d/f", b"content"),
        symlink("d/up", "../own-file"),
        symlink("d/here", "./f"),
        hard_link("d/h", "d/f"),
        hard_link("./h", "./d//f"),
    )
    assert unpack(data, place) == CopyResult(entries=6, bytes=7)
    assert (place / "d/f").read_bytes() == b"content"
    assert (place / "d/f").stat().st_nlink == 3
    assert (place / "d/up").read_text() == "own"
    assert (place / "d/here").read_bytes() == b"content"
    assert stat.S_IMODE((place / "d").stat().st_mode) == 0o750
    assert not list(place.rglob(".squib-*"))
    assert snapshot(place.parent, without=place) == before


def test_modes_lose_their_set_id_bits_and_directories_get_theirs_last(place: Path) -> None:
    data = archive(
        directory("d", 0o2555), header("d/f", mode=0o6755), header("d/g", mode=0o1644), directory("d/e", 0o500)
    )
    unpack(data, place)
    modes = {name: stat.S_IMODE((place / name).stat().st_mode) for name in ("d", "d/f", "d/g", "d/e")}
    assert modes == {"d": 0o555, "d/f": 0o755, "d/g": 0o644, "d/e": 0o500}


def test_directories_that_shut_their_owner_out_are_filled_first() -> None:
    """As root one would not notice."""
    root = os.geteuid() == 0
    place = Path(tempfile.mkdtemp())
    try:
        if root:
            os.chown(place, 65534, 65534)
            os.seteuid(65534)
        unpack(archive(directory("d", 0), directory("d/e", 0o500), member("d/e/f", b"x"), member("d/g", b"x")), place)
        assert stat.S_IMODE((place / "d").stat().st_mode) == 0
        (place / "d").chmod(0o700)
        assert stat.S_IMODE((place / "d" / "e").stat().st_mode) == 0o500
        assert (place / "d" / "e" / "f").read_bytes() == b"x"
        (place / "d" / "e").chmod(0o700)
    finally:
        if root:
            os.seteuid(0)
        shutil.rmtree(place)


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [(b"1.000000007", 1_000_000_007), (b"-1.5", -1_500_000_000), (b"3", 3 * 10**9), (b"2.1234567899", 2_123_456_789)],
)
def test_times_are_kept_to_the_nanosecond(place: Path, text: bytes, nanoseconds: int) -> None:
    unpack(archive(records(b"x", mtime=text) + FILE, records(b"x", mtime=text) + directory("d")), place)
    assert (place / "f").stat().st_mtime_ns == nanoseconds
    assert (place / "d").stat().st_mtime_ns == nanoseconds


def test_long_names_of_both_kinds_are_read(place: Path) -> None:
    first, second, third = (letter * 200 for letter in "abc")
    data = archive(
        records(b"x", path=first.encode()) + FILE,
        long(LONG_NAME, second.encode()) + long(LONG_LINK, first.encode()) + symlink("l", "short"),
        records(b"x", path=third.encode(), linkpath=first.encode()) + hard_link("h", "short"),
    )
    unpack(data, place)
    assert (place / second).readlink() == Path(first)
    assert (place / third).samefile(place / first)


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_of_other_programs_are_read(place: Path, format_: int) -> None:
    source = place.parent / "target-2"
    (source / "sub").mkdir()
    (source / "sub" / ("n" * 90)).write_bytes(b"z" * 3000)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format_) as tar:
        tar.add(source, "copy")
    stream.seek(0)
    unpack(stream, place)
    assert snapshot(place / "copy", times=False) == snapshot(source, times=False)


def test_the_later_of_two_files_of_one_name_wins_and_a_hard_link_keeps_the_first(place: Path) -> None:
    unpack(archive(member("f", b"first"), hard_link("h", "f"), member("f", b"second")), place)
    assert ((place / "f").read_bytes(), (place / "h").read_bytes()) == (b"second", b"first")


def test_a_hard_link_of_a_file_to_itself_is_that_file(place: Path) -> None:
    unpack(archive(FILE, hard_link("f", "f")), place)
    assert (place / "f").read_bytes() == b"content"
    assert not list(place.rglob(".squib-*"))


def test_a_file_replaces_a_link_and_does_not_follow_it(place: Path) -> None:
    unpack(archive(member("own-link", b"new"), symlink("own-file", "own-link")), place)
    assert (place / "own-link").read_bytes() == b"new" and not (place / "own-link").is_symlink()
    assert (place / "own-file").readlink() == Path("own-link")
    assert (place.parent / "target-2" / "file").read_text() == "mine too"


def test_an_existing_file_is_replaced_in_one_step(place: Path) -> None:
    with (place / "own-file").open() as before:
        unpack(archive(member("own-file", b"new")), place)
        assert before.read() == "own"
    assert (place / "own-file").read_bytes() == b"new"


def test_links_that_lead_out_are_made_on_demand_and_never_followed(place: Path) -> None:
    links = symlink("l", "/etc/passwd") + symlink("d/up", "../../secret")
    unpack(archive(links), place, unsafe_links=True)
    assert (place / "l").readlink() == Path("/etc/passwd")
    with pytest.raises(ArchiveRefused):
        unpack(archive(symlink("up", "..") + member("up/secret", b"x")), place, unsafe_links=True)
    assert (place.parent / "secret").read_text() == "mine"


def test_the_target_itself_gets_mode_and_time_only_if_it_is_new(place: Path) -> None:
    data = archive(records(b"x", mtime=b"7.5") + directory("./", 0o700)).getvalue()
    mode = stat.S_IMODE(place.stat().st_mode)
    unpack(io.BytesIO(data), place)
    assert stat.S_IMODE(place.stat().st_mode) == mode != 0o700
    unpack(io.BytesIO(data), place, new_target=True)
    assert (stat.S_IMODE(place.stat().st_mode), place.stat().st_mtime_ns) == (0o700, 7_500_000_000)


def test_owners_are_the_callers_or_with_keep_owner_the_archives(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = records(b"x", uid=b"4711", gid=b"4712")
    data = archive(owner + FILE, owner + directory("d"), owner + symlink("l", "f")).getvalue()
    unpack(io.BytesIO(data), place)
    assert (place / "f").stat().st_uid == os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(PermissionDenied, match="only root"):
        unpack(io.BytesIO(data), place, keep_owner=True)
    monkeypatch.undo()
    if os.geteuid() == 0:
        unpack(io.BytesIO(data), place, keep_owner=True)
        owners = {(os.lstat(place / name).st_uid, os.lstat(place / name).st_gid) for name in ("f", "d", "l")}
        assert owners == {(4711, 4712)}


def test_a_target_that_is_no_directory_is_said(place: Path) -> None:
    with pytest.raises(NoSuchFile, match="missing: No such file or directory, on this machine"):
        unpack(archive(FILE), place / "missing")
    with pytest.raises(NotADirectory):
        unpack(archive(FILE), place / "own-file")


# Whatever comes

VALID = archive(
    directory("d"),
    member("d/f", b"content" * 100),
    symlink("d/l", "../own-file"),
    hard_link("h", "d/f"),
    records(b"x", path="d/ü".encode(), mtime=b"1.5", size=b"3") + member("x", b"abc"),
    long(LONG_NAME, b"n" * 120) + member("n", b"z"),
).getvalue()


def _survives(directory: Path, data: bytes) -> None:
    place = directory / "target"
    place.mkdir(exist_ok=True)
    before = snapshot(directory, without=place)
    with contextlib.suppress(SquibError):
        unpack(io.BytesIO(data), place, limits=Limits(max_bytes=1 << 20))
    assert snapshot(directory, without=place) == before
    assert not list(place.rglob(".squib-*"))


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sandbox")
    (root / "secret").write_text("mine")
    return root


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.binary(min_size=1, max_size=12)), max_size=6))
def test_a_changed_archive_is_unpacked_or_refused(sandbox: Path, changes: list[tuple[int, bytes]]) -> None:
    data = VALID
    for at, new in changes:
        block = at // BLOCK * BLOCK
        whole = damaged(data[block : block + BLOCK], at - block, new[: BLOCK - at + block])
        data = data[:block] + whole + data[block + BLOCK :]
    _survives(sandbox, data)


_names = st.sampled_from(
    ["f", "d", "d/f", "l", "l/f", "d/l", "d/l/f", ".", "..", "../secret", "d/../l", "/etc/x", "l/l/f"]
)
_types = st.sampled_from([tarfile.REGTYPE, DIRECTORY, SYMLINK, HARD_LINK, tarfile.FIFOTYPE])


@settings(max_examples=80, deadline=None)
@given(entries=st.lists(st.tuples(_names, _types, _names, st.booleans()), max_size=8), cut=st.integers(0, 12))
def test_names_links_and_types_in_any_order_stay_inside(
    sandbox: Path, entries: list[tuple[str, bytes, str, bool]], cut: int
) -> None:
    data = b"".join(member(name, b"x" if type_ == b"0" else b"", type_, link=link) for name, type_, link, _ in entries)
    _survives(sandbox, (data + END)[: None if cut == 0 else -cut * 100])


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=2000))
def test_random_bytes_are_refused(sandbox: Path, data: bytes) -> None:
    _survives(sandbox, data)
