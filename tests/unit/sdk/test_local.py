"""Finding and starting the engine of a state directory."""

import asyncio
import json
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from squib.errors import BootFailed, DiskFull, EngineStartFailed, EngineUnavailable
from squib.host import proc, sockets
from squib.host.locks import FileLock
from squib.paths import Home
from squib.sdk import local
from squib.sdk.local import engine_answers, ensure_engine, make_exclusive


class Daemons:
    """In the place of `proc.spawn_daemon`: engines that listen and report a moment after they were started."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.started: list[list[str]] = []
        self.report: bytes | None = b"{}"
        self.listener: socket.socket | None = None

    def spawn(self, argv: Sequence[str], *, log_path: Path, pass_fds: Sequence[int]) -> int:
        assert argv[-1] == str(pass_fds[0]) and log_path == self.home.engine_log
        self.started.append(list(argv))
        self._fd = os.dup(pass_fds[0])
        if self.report is not None:
            asyncio.get_running_loop().call_later(0.02, self._be_ready)
        return 0

    def _be_ready(self) -> None:
        assert self.report is not None
        self.listener = sockets.listen(self.home.engine_socket)
        os.write(self._fd, self.report)
        os.close(self._fd)

    def close(self) -> None:
        if self.listener:
            self.listener.close()
        if self.report is None:
            with suppress(OSError):
                os.close(self._fd)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def daemons(home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemons]:
    daemons = Daemons(home)
    monkeypatch.setattr(proc, "spawn_daemon", daemons.spawn)
    yield daemons
    daemons.close()


async def ensure(home: Home, times: int = 1) -> None:
    async with asyncio.timeout(20):
        await asyncio.gather(*(ensure_engine(home) for _ in range(times)))


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


@pytest.mark.anyio
async def test_of_many_callers_at_once_one_starts_the_engine(home: Home, daemons: Daemons) -> None:
    await ensure(home, times=20)
    assert len(daemons.started) == 1
    await ensure(home)
    assert len(daemons.started) == 1
    assert daemons.started[0][:4] == [sys.executable, "-P", "-m", "squib.api.daemon"]
    assert daemons.started[0][4] == str(home.root)


@pytest.mark.anyio
async def test_the_state_directory_is_made_for_its_user_alone(home: Home, daemons: Daemons) -> None:
    umask = os.umask(0)
    try:
        await ensure(home)
    finally:
        os.umask(umask)
    assert home.root.stat().st_mode & 0o777 == 0o700


@pytest.mark.anyio
async def test_a_socket_that_nobody_listens_on_is_no_engine(home: Home, daemons: Daemons) -> None:
    assert not engine_answers(home)
    home.root.mkdir()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(home.engine_socket))
    assert not engine_answers(home)
    home.engine_socket.unlink()
    await ensure(home)
    assert engine_answers(home)


def test_the_socket_of_another_user_is_said_to_be_one(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *, blocking: bool) -> socket.socket:
        raise PermissionError

    monkeypatch.setattr(sockets, "connect", refuse)
    with pytest.raises(EngineStartFailed, match="belongs to another user") as caught:
        engine_answers(home)
    assert "SQUIB_HOME" in caught.value.hint


@pytest.mark.anyio
async def test_what_the_engine_reports_is_raised(home: Home, daemons: Daemons) -> None:
    daemons.report = json.dumps({"error": {"code": "boot_failed", "message": "m", "hint": "h", "detail": "d"}}).encode()
    with pytest.raises(BootFailed, match="m") as caught:
        await ensure(home)
    assert (caught.value.hint, caught.value.detail) == ("h", "d")


@pytest.mark.anyio
async def test_an_engine_that_ends_without_a_word_is_told_with_its_log(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one test here that starts a process: a program in the place of Python."""
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\necho "$*" >"$4/argv"\necho "Traceback: no module named é" >&2\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    home.root.mkdir()
    home.engine_log.write_text("old line\n" * 1000)
    before = open_fds()
    with pytest.raises(EngineStartFailed, match="exited before it was ready") as caught:
        await ensure(home)
    assert caught.value.detail.endswith("Traceback: no module named é")
    assert len(caught.value.detail) <= 2000 and str(home.engine_log) in caught.value.hint
    assert (home.root / "argv").read_text().startswith(f"-P -m squib.api.daemon {home.root} --ready-fd ")
    assert open_fds() == before


@pytest.mark.anyio
async def test_an_engine_that_never_answers_is_given_up(
    home: Home, daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "START_TIMEOUT_S", 0.02)
    daemons.report = None
    with pytest.raises(EngineStartFailed, match=r"did not start within 0.02 s") as caught:
        await ensure(home)
    assert str(home.engine_log) in caught.value.hint


@pytest.mark.anyio
@pytest.mark.parametrize("report", [b"nonsense", b'{"error": ', b"[]"])
async def test_a_report_that_broke_off_is_a_failed_start(home: Home, daemons: Daemons, report: bytes) -> None:
    daemons.report = report
    home.root.mkdir()
    home.engine_log.write_text("Killed\n")
    with pytest.raises(EngineStartFailed, match="exited before it was ready") as caught:
        await ensure(home)
    assert caught.value.detail == "Killed"


@pytest.mark.anyio
async def test_waiting_for_somebody_elses_start_has_an_end(
    home: Home, daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "START_TIMEOUT_S", 0.02)
    home.root.mkdir()
    with FileLock(home.start_lock) as lock:
        assert lock.try_acquire()
        with pytest.raises(EngineStartFailed, match="another process has been starting") as caught:
            await ensure(home)
    assert str(home.start_lock) in caught.value.hint and daemons.started == []


@pytest.mark.anyio
async def test_a_start_that_failed_can_be_tried_again(home: Home, daemons: Daemons) -> None:
    daemons.report = b'{"error": {"code": "engine_start_failed", "message": "m"}}'
    with pytest.raises(EngineStartFailed):
        await ensure(home)
    assert daemons.listener
    daemons.listener.close()
    daemons.report = b"{}"
    await ensure(home)
    assert len(daemons.started) == 2


@pytest.mark.anyio
@pytest.mark.parametrize("place", ["a file", "below a file", "start lock"])
async def test_a_state_directory_that_cannot_be_used_is_told(home: Home, daemons: Daemons, place: str) -> None:
    if place == "start lock":
        home.start_lock.mkdir(parents=True)
    else:
        home.root.write_text("")
    unusable = Home(home.root / "deeper") if place == "below a file" else home
    with pytest.raises(EngineStartFailed, match="cannot be") as caught:
        await ensure(unusable)
    assert "SQUIB_HOME" in caught.value.hint and daemons.started == []


@pytest.mark.anyio
async def test_a_full_disk_is_told(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(proc, "spawn_daemon", full)
    before = open_fds()
    with pytest.raises(DiskFull):
        await ensure(home)
    assert open_fds() == before


@pytest.mark.anyio
async def test_no_client_and_no_engine_can_start_while_one_has_the_state_directory_alone(home: Home) -> None:
    home.root.mkdir()
    locks = [FileLock(home.start_lock), FileLock(home.engine_lock)]
    async with make_exclusive(home):
        assert [lock.try_acquire() for lock in locks] == [False, False]
    assert [lock.try_acquire() for lock in locks] == [True, True]
    for lock in locks:
        lock.close()


@pytest.mark.anyio
async def test_a_process_that_keeps_the_state_directory_is_told(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "START_TIMEOUT_S", 0.05)
    home.root.mkdir()
    with FileLock(home.start_lock) as lock:
        lock.acquire()
        with pytest.raises(EngineUnavailable, match="another process uses"):
            async with make_exclusive(home):
                pass
