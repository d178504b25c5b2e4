"""``snapshot export`` and ``import``: files, standard streams, what they print and reject."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from squib.cli import progress
from squib.core.snapshots import catalog
from squib.core.snapshots.snapshot import delete_snapshot
from squib.sdk.transfer import newfile
from tests.fakes.served import Served
from tests.processes import until
from tests.unit.cli.conftest import Ended, Squib


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def saved(squib: Squib, engine: Served) -> Iterator[None]:
    """A VM ``small``, with a kernel and an image of squib's, and its snapshot ``s1``."""
    assert squib("create", "--name", "small", "--disk", "16mb", "--cold").status == 0
    assert squib("snapshot", "create", "small", "--name", "s1").status == 0
    yield

    async def clean(engine_: object) -> None:
        for snapshot in catalog.all_snapshots(engine.rig.home):
            await delete_snapshot(engine.engine, snapshot.id)

    engine.call(clean)


def done(ended: Ended) -> Ended:
    assert (ended.status, ended.err) == (0, "")
    return ended


def names(squib: Squib) -> list[str]:
    return sorted(found["name"] for found in done(squib("--json", "snapshot", "ls")).json)


def test_a_snapshot_goes_to_a_file_and_back(squib: Squib, here: Path) -> None:
    assert done(squib("snapshot", "export", "s1", "s1.tar")).out == b""
    assert stat.S_IMODE((here / "s1.tar").stat().st_mode) == 0o600
    assert os.listdir(here) == ["s1.tar"]  # noqa: PTH208
    done(squib("snapshot", "rm", "s1"))
    snapshot_id = done(squib("snapshot", "import", "s1.tar")).text.strip()
    assert done(squib("--json", "snapshot", "inspect", snapshot_id)).json[0]["name"] == "s1"
    done(squib("snapshot", "import", "s1.tar", "--name", "s2"))
    assert names(squib) == ["s1", "s2"]
    assert squib("create", "--snapshot", "s2").status == 0


def test_json(squib: Squib, here: Path) -> None:
    told = done(squib("--json", "snapshot", "export", "s1", "s1.tar")).json
    assert told == {"snapshot": "s1", "file": "s1.tar", "size_bytes": (here / "s1.tar").stat().st_size}
    assert done(squib("--json", "snapshot", "import", "s1.tar", "--name", "s2")).json["name"] == "s2"


def test_an_existing_file_is_replaced_only_with_force(squib: Squib, here: Path) -> None:
    (here / "s1.tar").write_text("mine")
    ended = squib("--json", "snapshot", "export", "s1", "s1.tar")
    assert (ended.status, ended.error["code"]) == (1, "file_exists")
    assert ended.error["hint"].endswith("--force")
    assert (here / "s1.tar").read_text() == "mine"
    (here / "link").symlink_to("s1.tar")
    done(squib("snapshot", "export", "--force", "s1", "link"))
    assert (here / "link").is_symlink() and (here / "s1.tar").stat().st_size > 1000
    assert sorted(os.listdir(here)) == ["link", "s1.tar"]  # noqa: PTH208


@pytest.mark.parametrize(
    ("place", "code"), [(".", "is_a_directory"), ("nosuch/s1.tar", "no_such_file"), ("/dev/null", "file_exists")]
)
def test_what_is_no_place_for_a_file_is_refused(squib: Squib, here: Path, place: str, code: str) -> None:
    ended = squib("--json", "snapshot", "export", "s1", place)
    assert (ended.status, ended.error["code"]) == (1, code)
    assert os.listdir(here) == []  # noqa: PTH208


def test_a_snapshot_that_does_not_exist_leaves_no_file(squib: Squib, here: Path) -> None:
    ended = squib("--json", "snapshot", "export", "nosuch", "s1.tar")
    assert (ended.status, ended.error["code"]) == (1, "not_found")
    assert os.listdir(here) == []  # noqa: PTH208


def test_a_file_that_appears_meanwhile_is_kept(squib: Squib, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = newfile.NewFile.finish

    def late(self: newfile.NewFile) -> None:
        (here / "s1.tar").write_text("mine")
        finish(self)

    monkeypatch.setattr(newfile.NewFile, "finish", late)
    assert squib("--json", "snapshot", "export", "s1", "s1.tar").error["code"] == "file_exists"
    assert [path.read_text() for path in here.iterdir()] == ["mine"]


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_disk_without_nameless_files_works_too(
    squib: Squib, here: Path, monkeypatch: pytest.MonkeyPatch, force: list[str]
) -> None:
    opened = os.open

    def refuse(path: str, flags: int, *rest: int, **named: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return opened(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", refuse)
    done(squib("snapshot", "export", *force, "s1", "s1.tar"))
    assert os.listdir(here) == ["s1.tar"]  # noqa: PTH208
    done(squib("snapshot", "import", "s1.tar", "--name", "s2"))


def test_standard_streams(squib: Squib, here: Path, engine: Served) -> None:
    environment = os.environ | {"SQUIB_HOME": str(engine.rig.home.root)}
    command = [sys.executable, "-m", "squib", "snapshot"]
    data = subprocess.run([*command, "export", "s1", "-"], check=True, capture_output=True, env=environment).stdout
    imported = subprocess.run(
        [*command, "import", "-", "--name", "s2"], check=True, stdout=subprocess.PIPE, env=environment, input=data
    )
    assert imported.stdout.startswith(b"snap-")
    assert names(squib) == ["s1", "s2"]
    assert squib("--json", "snapshot", "export", "s1", "-").error["code"] == "invalid_argument"


def test_a_reader_that_goes_away_ends_the_export(engine: Served) -> None:
    environment = os.environ | {"SQUIB_HOME": str(engine.rig.home.root)}
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "squib", "snapshot", "export", "s1", "-"]
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=environment, timeout=20)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_an_export_that_is_killed_leaves_no_file(here: Path) -> None:
    if (child := os.fork()) == 0:
        newfile.NewFile(here / "s1.tar", replace=False).write(b"data")
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert os.listdir(here) == []  # noqa: PTH208


def test_an_import_that_is_killed_leaves_nothing(squib: Squib, here: Path, engine: Served) -> None:
    done(squib("snapshot", "export", "s1", "s1.tar"))
    environment = os.environ | {"SQUIB_HOME": str(engine.rig.home.root)}
    command = [sys.executable, "-m", "squib", "snapshot", "import", "-", "--name", "s2"]
    snapshots = engine.rig.home.snapshots
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as importing:
        assert importing.stdin
        importing.stdin.write((here / "s1.tar").read_bytes()[:-600])
        importing.stdin.flush()
        until(lambda: len(list(snapshots.iterdir())) == 2, "it does not arrive", within_s=20)
        importing.kill()
    until(lambda: len(list(snapshots.iterdir())) == 1, "it stays", within_s=20)
    assert names(squib) == ["s1"]


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        (b"hello", "truncated", ""),
        (b"x" * 2000, "a header is damaged", ""),
        (b"\x28\xb5\x2f\xfd" + b"x" * 2000, "is compressed with zstd", "zstd -dc s1.tar | squib snapshot import -"),
        (b"\x1f\x8b" + b"x" * 2000, "is compressed with gzip", "gzip -dc s1.tar | squib snapshot import -"),
    ],
)
def test_what_is_no_snapshot_is_refused(squib: Squib, here: Path, content: bytes, message: str, hint: str) -> None:
    (here / "s1.tar").write_bytes(content)
    ended = squib("--json", "snapshot", "import", "s1.tar", "--name", "s2")
    assert (ended.status, ended.error["code"], ended.error["hint"]) == (2, "invalid_argument", hint)
    assert message in ended.error["message"]
    assert names(squib) == ["s1"]


def test_files_that_cannot_be_read(squib: Squib, here: Path) -> None:
    assert squib("--json", "snapshot", "import", "nosuch").error["code"] == "no_such_file"
    assert squib("--json", "snapshot", "import", ".").error["code"] == "not_a_file"
    os.mkfifo(here / "pipe")
    ended = squib("--json", "snapshot", "import", "pipe")
    assert (ended.error["code"], ended.error["hint"]) == ("not_a_file", "use - for standard input")


def test_a_taken_name_is_told(squib: Squib, here: Path) -> None:
    done(squib("snapshot", "export", "s1", "s1.tar"))
    ended = squib("--json", "snapshot", "import", "s1.tar")
    assert (ended.status, ended.error["code"]) == (1, "name_taken")
    assert ended.error["hint"].startswith("choose another --name")


def test_progress_is_shown_after_a_second(squib: Squib, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_QUIET_S", 0)
    assert "squib: exporting s1: " in squib("snapshot", "export", "s1", "s1.tar").err
    assert "squib: importing s1.tar: " in squib("snapshot", "import", "s1.tar", "--name", "s2").err
