"""An engine that dies while VMs run comes back. Real processes; only the driver is a fake."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from squib.host import sockets
from squib.host.watchdog import MAX_RESTARTS, PAUSE_S
from squib.sdk.local import ensure_engine
from tests.fakes.engine import Rig
from tests.fakes.local import client, fake_engines, start_engine
from tests.processes import engines, kill_9, until, watchdogs

pytestmark = pytest.mark.slow  # each is some engines


@pytest.fixture(autouse=True)
def fake_driver(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with fake_engines(rig, monkeypatch):
        yield


def engine_answers(rig: Rig, *, other_than: int) -> bool:
    if not sockets.is_served(rig.home.engine_socket):
        return False
    with client(rig) as http:
        return bool(http.get("/v1/engine").json()["pid"] != other_than)


def test_after_kill_9_another_engine_answers_and_has_the_vm(rig: Rig) -> None:
    old = start_engine(rig)
    [vmm] = rig.vmms()
    kill_9(old)
    until(lambda: engine_answers(rig, other_than=old), "no engine comes back")
    with client(rig) as http:
        found = http.get("/v1/vms/web").json()
    assert (found["state"], found["pid"]) == ("running", vmm)
    until(lambda: len(watchdogs(rig.home)) == 1, "the new engine has no watchdog")
    assert len(engines(rig.home)) == 1


def nothing_comes_back(rig: Rig) -> None:
    """Every process of this engine ends, and the watchdog among them has started no other."""
    until(lambda: not engines(rig.home) and not watchdogs(rig.home), "something is left")
    assert "restarting it" not in rig.home.engine_log.read_text()


def test_after_sigterm_none_comes_back(rig: Rig) -> None:
    os.kill(start_engine(rig), signal.SIGTERM)
    nothing_comes_back(rig)


def test_without_a_vm_none_comes_back(rig: Rig) -> None:
    pid = start_engine(rig)
    with client(rig) as http:
        assert http.delete("/v1/vms/web").status_code == 204
    time.sleep(1.5)  # the engine looks every second whether VMs need it
    kill_9(pid)
    nothing_comes_back(rig)


def test_an_engine_that_ends_idle_leaves_no_watchdog(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUIB_IDLE_EXIT_S", "0.1")
    asyncio.run(ensure_engine(rig.home))
    nothing_comes_back(rig)


def test_a_watchdog_that_was_killed_is_replaced(rig: Rig) -> None:
    old = start_engine(rig)
    for _ in range(2):
        [first] = watchdogs(rig.home)
        kill_9(first)
        until(lambda gone=first: watchdogs(rig.home) not in ([], [gone]), "there is no other")  # type: ignore[misc]
    assert engines(rig.home) == [old]
    kill_9(old)
    until(lambda: engine_answers(rig, other_than=old), "no engine comes back")


def test_without_its_state_directory_none_comes_back(rig: Rig) -> None:
    pid = start_engine(rig)
    [vmm] = rig.vmms()
    os.kill(pid, signal.SIGSTOP)  # it does not see what follows
    rig.home.root.rename(rig.home.root.with_name("away"))
    kill_9(pid)
    until(lambda: not engines(rig.home) and not watchdogs(rig.home), "something is left")
    assert not rig.home.root.exists() and Path(f"/proc/{vmm}").exists()
    rig.home.root.with_name("away").rename(rig.home.root)


def test_an_engine_that_is_killed_while_it_starts_comes_back(rig: Rig) -> None:
    """Before, the watchdog had become that engine, and its own watchdog did not exist yet."""
    pid = start_engine(rig)
    [keeper] = watchdogs(rig.home)
    kill_9(pid)
    until(lambda: engines(rig.home) not in ([], [pid]), "no engine starts")
    [starting] = engines(rig.home)
    kill_9(starting)
    until(lambda: engine_answers(rig, other_than=pid), "no engine comes back")
    assert engines(rig.home) != [starting]
    assert watchdogs(rig.home) == [keeper]


def test_a_crash_loop_becomes_slow(rig: Rig) -> None:
    """Before, the watchdog gave up."""
    pid = start_engine(rig)
    for _ in range(MAX_RESTARTS):
        kill_9(pid)
        until(lambda gone=pid: engines(rig.home) not in ([], [gone]), "no engine starts")  # type: ignore[misc]
        [pid] = engines(rig.home)
    killed_at = time.monotonic()
    kill_9(pid)
    until(lambda: engine_answers(rig, other_than=pid), "no engine comes back")
    assert time.monotonic() - killed_at > PAUSE_S
    assert rig.home.engine_log.read_text().count(f"restarting it in {PAUSE_S:g} s") == 1
