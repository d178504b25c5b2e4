"""Commands that get a path of any kind: the error is named, and is never a fault in squib."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest

from squib.api.logfile import log_to_file
from squib.errors import EngineStartFailed
from squib.paths import Home
from tests.fakes.engine import Rig
from tests.unit.cli.conftest import Squib


def _socket(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(folder / "socket"))
    return folder / "socket"


def _loop(folder: Path) -> Path:
    (folder / "loop").symlink_to("loop")
    return folder / "loop"


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "fifo")
    return folder / "fifo"


def _unreadable(folder: Path) -> Path:
    if os.geteuid() == 0:
        pytest.skip("root can read every file")
    (folder / "unreadable").touch(mode=0)
    return folder / "unreadable"


def _below_file(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file" / "below"


PATHS: dict[str, Callable[[Path], str | Path]] = {
    "empty": lambda _: "",
    "missing": lambda folder: folder / "missing",
    "missing parent": lambda folder: folder / "missing" / "too",
    "below a file": _below_file,
    "directory": lambda folder: folder,
    "socket": _socket,
    "full": lambda _: "/dev/full",
    "loop": _loop,
    "fifo": _fifo,
    "read error": lambda _: "/proc/self/mem",
    "unreadable": _unreadable,
    "long name": lambda folder: folder / ("n" * 5000),
    "long path": lambda folder: str(folder) + "/n" * 5000,
    "NUL": lambda folder: f"{folder}/a\0b",
    "surrogate": lambda folder: f"{folder}/\udcff",
    "newline": lambda folder: f"{folder}/a\nb",
    "home of nobody": lambda _: "~nouser/x",
}

COMMANDS = {
    "create --rootfs": ["create", "--no-start", "--rootfs", "PATH"],
    "create --kernel": ["create", "--no-start", "--kernel", "PATH"],
    "create --env-file": ["create", "--no-start", "--env-file", "PATH"],
    "run --rootfs": ["run", "--rootfs", "PATH", "true"],
    "run --env-file": ["run", "--env-file", "PATH", "true"],
    "exec --env-file": ["exec", "--env-file", "PATH", "web", "true"],
    "upload": ["upload", "web", "PATH", "/tmp/x"],
    "cp in": ["cp", "PATH", "web:/tmp/x"],
    "pack from": ["image", "pack", "PATH", "OTHER"],
    "pack to": ["image", "pack", "SOURCE", "PATH"],
    "download to": ["download", "web", "/no-such-file", "PATH"],
    "cp out": ["cp", "web:/no-such-file", "PATH"],
}


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """A command that waits for ever fails its test."""

    def fail(*_: object) -> None:
        raise AssertionError("the command does not end")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(4)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


FITTING = {
    ("pack from", "empty"), ("pack from", "directory"),
    ("pack to", "missing"), ("pack to", "surrogate"), ("pack to", "newline"),
    ("create --env-file", "fifo"), ("run --env-file", "fifo"), ("exec --env-file", "fifo"),
}  # fmt: skip
"""Cases without an error: an empty path is this directory, a new file may have any name, a pipe waits for a writer."""


@pytest.mark.parametrize(("command", "path"), [case for case in product(COMMANDS, PATHS) if case not in FITTING])
def test_any_path_that_does_not_fit_is_a_named_error(command: str, path: str, squib: Squib, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    source = tmp_path / "source"
    source.mkdir()
    words = {"PATH": str(PATHS[path](folder)), "OTHER": str(tmp_path / "other"), "SOURCE": str(source)}
    ended = squib("--json", *(words.get(word, word) for word in COMMANDS[command]))
    assert ended.status in (1, 2)
    assert ended.error["code"] not in ("internal", "host_error")


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["engine.lock", "engine.sock"])
async def test_a_directory_in_place_of_a_file_of_the_engine_is_named(name: str, rig: Rig) -> None:
    path = rig.home.root / name
    path.mkdir(parents=True)
    with pytest.raises(EngineStartFailed, match=f"{name} is a directory") as caught:
        async with rig.engine():
            pass
    assert caught.value.hint == f"remove it: rmdir {path}"


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    home = Home(_below_file(tmp_path))
    with pytest.raises(EngineStartFailed, match=r"engine\.log cannot be written: Not a directory"):
        log_to_file(home)
