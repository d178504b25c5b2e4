"""``upload``, ``download`` and ``cp``: what they copy, print and reject."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import pytest

from squib.cli import progress
from squib.models import Progress
from tests.fakes.files import FakeFiles
from tests.fakes.served import Served
from tests.fakes.trees import snapshot
from tests.unit.cli.conftest import Ended, Squib


@pytest.fixture(autouse=True)
def guest(engine: Served, tmp_path: Path) -> FakeFiles:
    """The files of the VM ``web``."""
    (tmp_path / "guest").mkdir()
    engine.agent.files = FakeFiles(tmp_path / "guest")
    return engine.agent.files


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


def _grow(root: Path) -> None:
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "file").write_bytes(b"content")
    (root / "link").symlink_to("sub/file")
    (root / "sub").chmod(0o751)


def done(ended: Ended) -> Ended:
    assert (ended.status, ended.err) == (0, "")
    return ended


def test_files_and_directories_go_up_and_come_down(squib: Squib, here: Path, guest: FakeFiles) -> None:
    _grow(here / "tree")
    (here / "file").write_bytes(b"data")
    (here / "file").chmod(0o640)
    (guest.root / "srv").mkdir()
    assert done(squib("upload", "web", "tree", "file", "/srv")).out == b""
    assert snapshot(guest.root / "srv" / "tree", times=False) == snapshot(here / "tree", times=False)
    assert stat.S_IMODE((guest.root / "srv" / "file").stat().st_mode) == 0o640
    (here / "back").mkdir()
    done(squib("download", "web", "/srv/tree", "/srv/file", "back"))
    assert snapshot(here / "back" / "tree", times=False) == snapshot(here / "tree", times=False)
    assert (here / "back" / "file").read_bytes() == b"data"


def test_cp_goes_either_way(squib: Squib, here: Path, guest: FakeFiles) -> None:
    (here / "a:b").write_bytes(b"data")
    done(squib("cp", "./a:b", "web:/there"))
    assert (guest.root / "there").read_bytes() == b"data"
    done(squib("cp", "web:/there", "back"))
    assert (here / "back").read_bytes() == b"data"


def test_json_tells_what_was_copied_and_shows_no_progress(squib: Squib, here: Path, guest: FakeFiles) -> None:
    _grow(here / "tree")
    ended = done(squib("--json", "upload", "web", "tree", "/new"))
    told = ended.json
    assert told.pop("duration_s") >= 0
    assert told == {"sources": ["tree"], "target": "/new", "entries": 4, "bytes": 7, "left_out": []}
    ended = done(squib("--json", "cp", "web:/new/sub/file", "."))
    assert (ended.json["entries"], ended.json["bytes"]) == (1, 7)


def test_names_of_any_bytes_are_copied_and_told(squib: Squib, here: Path, guest: FakeFiles) -> None:
    name = os.fsdecode(b"\xff\n -x")
    (here / name).write_bytes(b"data")
    ended = done(squib("--json", "upload", "web", f"./{name}", f"/{name}"))
    assert (guest.root / name).read_bytes() == b"data"
    assert ended.json["sources"] == [f"./{name}"]


def test_owner_and_mode_are_passed_on(squib: Squib, here: Path, guest: FakeFiles) -> None:
    (here / "file").touch()
    done(squib("upload", "--owner", "www-data:adm", "--mode", "0604", "web", "file", "/file"))
    assert guest.owners["/file"] == "www-data:adm"
    assert stat.S_IMODE((guest.root / "file").stat().st_mode) == 0o604
    done(squib("upload", "-a", "web", "file", "/file"))
    assert guest.owners["/file"] == f"{os.getuid()}:{os.getgid()}"


def test_sockets_are_left_out_and_said(squib: Squib, here: Path, guest: FakeFiles) -> None:
    (here / "tree").mkdir()
    os.mknod(here / "tree" / "s", stat.S_IFSOCK | 0o600)
    ended = squib("upload", "web", "tree", "/tree")
    assert (ended.status, ended.err) == (0, "squib: skipped: tree/s: a socket or a device\n")


# Standard input and output


def test_standard_input_becomes_a_file(
    squib: Squib, here: Path, guest: FakeFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(300_000)
    (here / "in").write_bytes(data)
    for words in (["upload", "--mode", "600", "web", "-", "/f"], ["cp", "-", "web:/f"]):
        with (here / "in").open("rb") as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            done(squib(*words))
        assert (guest.root / "f").read_bytes() == data
        (guest.root / "f").unlink()


def test_a_file_goes_to_standard_output(squib: Squib, guest: FakeFiles) -> None:
    data = os.urandom(300_000)
    (guest.root / "f").write_bytes(data)
    assert done(squib("download", "web", "/f", "-")).out == data
    assert done(squib("cp", "web:/f", "-")).out == data


def test_a_directory_does_not_go_to_standard_output(squib: Squib, guest: FakeFiles) -> None:
    ended = squib("download", "web", "/", "-")
    assert (ended.status, ended.out) == (1, b"")
    assert ended.err == (
        "squib: / is a directory; only a file can be written to standard output\nhint: squib exec web tar c -C / .\n"
    )


# Errors


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("upload web /x", "nothing to copy"),
        ("download web /x", "nothing to copy"),
        ("cp web:/x", "nothing to copy"),
        ("cp a b", "neither side is in a VM"),
        ("cp web:/a b web:/c", "in different places"),
        ("cp web:/a db:/b c", "in different places"),
        ("cp web:/a web:/b", "both paths are in VM web"),
        ("cp web:/a vm-%:/b", "'vm-%'"),
        ("cp web:~/a b", "'~' is not expanded"),
        ("upload web a ~", "'~' is not expanded"),
        ("upload web a - /b", "'-' cannot be combined with other sources"),
        ("download web /a /b -", "only one file can be written"),
        ("--json download web /a -", "--json and '-' cannot be used together"),
        ("upload --mode 0999 web a /b", "--mode: invalid permission bits '0999'"),
        ("upload --mode 10000 web a /b", "--mode: invalid permission bits '10000'"),
        ("upload --owner x -a web a /b", "--owner and --keep-owner cannot be used together"),
        ("cp --owner x web:/a b", "--owner and --mode only apply to copies into a VM"),
        ("cp --mode 644 web:/a b", "--owner and --mode only apply to copies into a VM"),
        ("cp --unsafe-links a web:/b", "--unsafe-links only applies to copies from a VM"),
    ],
)
def test_bad_command_lines_are_refused_and_change_nothing(
    line: str, said: str, squib: Squib, here: Path, guest: FakeFiles
) -> None:
    (here / "a").touch()
    (here / "b").write_text("b")
    (guest.root / "a").touch()
    before = snapshot(here), snapshot(guest.root)
    ended = squib(*line.split())
    assert (ended.status, ended.out) == (2, b"")
    assert said in (json.loads(ended.err)["error"]["message"] if "--json" in line else ended.err)
    assert (snapshot(here), snapshot(guest.root)) == before


def test_what_is_not_there_is_said(squib: Squib, here: Path) -> None:
    ended = squib("upload", "web", "missing", "/x")
    assert (ended.status, ended.err) == (1, "squib: missing: No such file or directory, on this machine\n")
    assert squib("--json", "download", "web", "/missing", ".").error["code"] == "no_such_file"
    assert squib("upload", "nosuchvm", ".", "/x").status == 1


def test_a_copy_that_breaks_off_leaves_nothing(squib: Squib, here: Path, guest: FakeFiles) -> None:
    _grow(guest.root / "tree")
    (guest.root / "file").write_bytes(bytes(1000))
    for broken, source in (("tar", "/tree"), ("read", "/file")):
        guest.break_off = broken
        assert squib("download", "web", source, "new").status == 1
        assert list(here.iterdir()) == []


def test_a_hostile_archive_is_refused_and_nothing_is_left(
    squib: Squib, here: Path, guest: FakeFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    (guest.root / "tree").mkdir()
    (guest.root / "tree" / "link").symlink_to("/etc/passwd")
    ended = squib("--json", "download", "web", "/tree", "new")
    assert ended.error["code"] == "archive_refused"
    assert "leads out of the directory, to '/etc/passwd'" in ended.error["message"]
    assert "--unsafe-links" in ended.error["hint"]
    assert list(here.iterdir()) == []
    done(squib("download", "--unsafe-links", "web", "/tree", "new"))
    assert (here / "new" / "link").readlink() == Path("/etc/passwd")


# Progress


def test_progress_is_told_by_lines_after_a_second(
    squib: Squib, here: Path, guest: FakeFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_QUIET_S", 0)
    (here / "file").write_bytes(bytes(3000))
    _grow(guest.root / "tree")
    assert squib("upload", "web", "file", "/f").err == "squib: uploading to web: file 0 B of 2.9 KiB\n"
    assert squib("download", "web", "/tree", "new").err == "squib: downloading from web: /tree\n"
    assert squib("--json", "upload", "web", "file", "/f").err == ""


def test_what_comes_often_is_passed_on_ten_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    times = [100.0, 100.5, 100.9, 101.0, 101.05, 101.11, 101.15, 102.0]
    clock = iter(times)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    passed: list[int] = []
    report = progress.throttled(lambda step: passed.append(step.done))
    for number in range(1, len(times)):
        report(Progress(step="x", done=number))
    assert [times[number] for number in passed] == [101.0, 101.11, 102.0]
