"""``squib engine``: the engine's process is shown and stopped. Real processes; only the driver is a fake."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from squib.cli import main
from tests.fakes.engine import Rig
from tests.fakes.local import client, fake_engines, start_engine
from tests.processes import engines, until, watchdogs

pytestmark = pytest.mark.slow  # each is an engine


@dataclass(frozen=True)
class Ended:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Squib = Callable[..., Ended]


@pytest.fixture
def squib(rig: Rig, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Squib]:
    monkeypatch.setenv("SQUIB_HOME", str(rig.home.root))
    monkeypatch.delenv("SQUIB_URL", raising=False)

    def run(*arguments: str) -> Ended:
        status = main.run(arguments)
        return Ended(status, *capfd.readouterr())

    with fake_engines(rig, monkeypatch):
        yield run


def nothing_comes_back(rig: Rig) -> None:
    until(lambda: not engines(rig.home) and not watchdogs(rig.home), "something is left")
    assert "restarting it" not in rig.home.engine_log.read_text()


def test_without_an_engine_status_says_so_and_starts_none(squib: Squib, rig: Rig) -> None:
    assert squib("engine", "status") == Ended(
        1, f"no engine runs in {rig.home.root}; the next command that needs one starts it\n", ""
    )
    shown = squib("engine", "status", "--json")
    assert (shown.status, shown.json["status"], shown.json["pid"]) == (1, "not_running", None)
    assert not rig.home.root.exists()


def test_without_an_engine_stop_has_nothing_to_do(squib: Squib, rig: Rig) -> None:
    stopped = squib("engine", "stop")
    assert (stopped.status, stopped.err) == (0, f"squib: no engine runs in {rig.home.root}\n")
    assert squib("engine", "stop", "--json").json == {"home": str(rig.home.root), "stopped": None}
    assert not rig.home.root.exists()


def test_status_shows_process_paths_and_vms(squib: Squib, rig: Rig) -> None:
    pid = start_engine(rig)
    shown = squib("engine", "status", "--json")
    assert shown.status == 0
    facts = shown.json
    assert (facts["status"], facts["pid"], facts["running_vms"], facts["vms"]) == ("running", pid, 1, 1)
    assert (facts["home"], facts["socket"]) == (str(rig.home.root), str(rig.home.engine_socket))
    assert (facts["log"], facts["url"], facts["problem"]) == (str(rig.home.engine_log), None, None)
    assert f"pid:          {pid}\n" in squib("engine", "status").out


def test_an_engine_that_is_stopped_is_shown_at_once(squib: Squib, rig: Rig) -> None:
    pid = start_engine(rig, with_vm=False)
    os.kill(pid, signal.SIGSTOP)
    shown = squib("engine", "status", "--json")
    facts = shown.json
    assert (shown.status, facts["status"], facts["pid"]) == (1, "not_responding", pid)
    assert facts["problem"] == f"its process {pid} is stopped"
    assert facts["hint"].startswith(f"let it go on: kill -CONT {pid}")
    age = datetime.now(UTC) - datetime.fromisoformat(facts["started_at"])
    assert -2 < age.total_seconds() < 60


def test_stop_ends_engine_and_watchdog(squib: Squib, rig: Rig) -> None:
    pid = start_engine(rig, with_vm=False)
    assert squib("engine", "stop") == Ended(0, f"stopped the engine {pid}\n", "")
    assert engines(rig.home) == []
    nothing_comes_back(rig)


def test_stop_is_refused_while_vms_run(squib: Squib, rig: Rig) -> None:
    pid = start_engine(rig)
    refused = squib("engine", "stop")
    assert refused.status == 1
    assert refused.err.startswith(
        "squib: the engine is not stopped while VMs run: web\nhint: squib engine stop --force"
    )
    assert engines(rig.home) == [pid]


def test_with_force_vms_go_on_and_the_next_command_adopts_them(squib: Squib, rig: Rig) -> None:
    pid = start_engine(rig)
    [vmm] = rig.vmms()
    assert squib("engine", "stop", "--force", "--json").json == {"home": str(rig.home.root), "stopped": pid}
    nothing_comes_back(rig)
    start_engine(rig, with_vm=False)
    with client(rig) as http:
        found = http.get("/v1/vms/web").json()
    assert (found["state"], found["pid"]) == ("running", vmm)


def test_a_stopped_engine_ends_only_with_force(squib: Squib, rig: Rig) -> None:
    pid = start_engine(rig)
    os.kill(pid, signal.SIGSTOP)
    refused = squib("engine", "stop")
    assert (refused.status, engines(rig.home)) == (1, [pid])
    assert f"does not respond: its process {pid} is stopped\nhint: squib engine stop --force" in refused.err
    assert squib("engine", "stop", "--force").status == 0
    nothing_comes_back(rig)


def test_an_engine_that_does_not_end_is_named(squib: Squib, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = start_engine(rig, with_vm=False)
    monkeypatch.setattr("squib.sdk.local.STOP_TIMEOUT_S", 0.0)
    failed = squib("engine", "stop")
    assert failed.status == 1
    assert f"did not end within 0 s: its process {pid} hangs\nhint: kill -9 {pid}" in failed.err


def test_a_remote_engine_is_not_stopped(squib: Squib, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUIB_URL", "http://127.0.0.1:9")
    refused = squib("engine", "stop")
    assert refused.status == 2
    assert "the engine at http://127.0.0.1:9 is not local\nhint: unset SQUIB_URL" in refused.err
