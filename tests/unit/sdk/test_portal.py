"""The event loop under `VM`: one for a process, Ctrl-C reaches what runs on it, and nothing waits for ever."""

import asyncio
import os
import signal
import threading
import warnings
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest

from squib.errors import SquibError, WrongState
from squib.sdk.portal import Portal


@pytest.fixture
def portal() -> Iterator[Portal]:
    portal = Portal()
    yield portal
    portal._stop()


def test_there_is_one_for_the_process_and_all_its_threads() -> None:
    found: list[Portal] = []
    threads = [threading.Thread(target=lambda: found.append(Portal.get())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {Portal.get()}


def test_results_and_errors_come_back(portal: Portal) -> None:
    async def give() -> str:
        return threading.current_thread().name

    async def fail() -> None:
        raise ZeroDivisionError

    assert portal.run(give()) == "squib"
    with pytest.raises(ZeroDivisionError):
        portal.run(fail())


def test_an_engine_is_shared_as_long_as_the_environment_names_it(
    portal: Portal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SQUIB_HOME", str(tmp_path / "a"))
    first = portal.engine()
    assert portal.engine() is first
    monkeypatch.setenv("SQUIB_HOME", str(tmp_path / "b"))
    assert portal.engine() is not first
    monkeypatch.setenv("SQUIB_HOME", str(tmp_path / "a"))
    assert portal.engine() is first


def test_ctrl_c_cancels_what_runs_waits_for_its_clean_up_and_is_raised(portal: Portal) -> None:
    log: list[str] = []

    async def work() -> None:
        main = threading.main_thread().ident
        assert main
        signal.pthread_kill(main, signal.SIGINT)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            for _ in range(10):
                await asyncio.sleep(0)
            log.append("cleaned up")
            raise

    with pytest.raises(KeyboardInterrupt):
        portal.run(work())
    assert log == ["cleaned up"]


def test_ctrl_c_in_the_first_moment_cancels_too(portal: Portal, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may arrive when the work is already on the loop and is not waited for yet."""
    hand_over = portal._loop.call_soon_threadsafe

    def interrupted(*arguments: Any) -> None:
        monkeypatch.undo()
        hand_over(*arguments)
        raise KeyboardInterrupt

    async def work() -> None:
        await asyncio.Event().wait()

    async def left() -> int:
        return len(asyncio.all_tasks()) - 1

    monkeypatch.setattr(portal._loop, "call_soon_threadsafe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        portal.run(work())
    assert portal.run(left()) == 0


def test_a_fork_gets_its_own() -> None:
    async def give() -> int:
        return os.getpid()

    parent = Portal.get()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork of a process with threads
        pid = os.fork()
    if pid == 0:
        try:
            child = Portal.get()
            os._exit(0 if child is not parent and child.run(give()) == os.getpid() else 1)
        finally:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    assert Portal.get() is parent and parent.run(give()) == os.getpid()


def test_what_was_made_before_a_fork_fails_after_it_and_does_not_hang() -> None:
    async def give() -> None: ...

    parent = Portal.get()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        signal.alarm(5)
        try:
            parent.run(give())
        except SquibError as error:
            os._exit(0 if "fork" in error.message and "from_id" in error.hint else 1)
        finally:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_callback_that_would_wait_for_itself_is_told(portal: Portal) -> None:
    async def give() -> None: ...

    async def work() -> None:
        portal.run(give())

    with pytest.raises(SquibError, match="callback"):
        portal.run(work())


def test_a_portal_that_is_stopped_ends_its_thread_and_its_connections() -> None:
    portal = Portal()
    engine = portal.engine()
    http = engine._client()
    portal._stop()
    assert not portal._thread.is_alive() and http.is_closed
    portal._stop()


def test_what_is_left_open_at_the_end_of_the_program_is_closed_and_waits_for_nothing() -> None:
    portal = Portal()
    left: list[str] = []

    async def items() -> AsyncGenerator[int, None]:
        yield 1

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            left.append("cancelled")

    async def begin() -> asyncio.Task[None]:
        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        return task

    open_loop = portal.iterate(items())
    assert next(open_loop) == 1
    portal.run(begin())
    portal._stop()
    assert left == ["cancelled"]
    open_loop.close()
    with pytest.raises(WrongState, match="end"):
        portal.run(wait())
