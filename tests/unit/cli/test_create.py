"""``create`` against a real engine with a fake driver: what is created, and the progress that is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from squib.cli import progress
from tests.fakes.served import Served
from tests.unit.cli.conftest import Squib


@pytest.fixture
def create(host_files: list[str]) -> list[str]:
    """The words of a ``create`` that the engine can carry out."""
    return ["create", *host_files, "--name", "new"]


def test_a_vm_that_is_created_runs(squib: Squib, create: list[str], engine: Served) -> None:
    ended = squib(*create, "--cpus", "2", "--memory", "256")
    assert (ended.status, ended.err) == (0, "")
    (vm,) = squib("inspect", "new").json
    assert (vm["vm_id"], vm["state"]) == (ended.text.strip(), "running")
    spec = engine.rig.driver.launched[-1]
    assert (spec.vm_id, spec.vcpu_count) == (vm["vm_id"], 2)


def test_no_start_launches_nothing(squib: Squib, create: list[str], engine: Served) -> None:
    launched = len(engine.rig.driver.launched)
    assert squib(*create, "--no-start", "--json").json["state"] == "created"
    assert len(engine.rig.driver.launched) == launched


def test_the_steps_are_shown_after_a_second(
    squib: Squib, create: list[str], engine: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_QUIET_S", 0)
    engine.rig.driver.behaviour = "--hang"
    ended = squib(*create, "--boot-timeout", "1s")
    assert ended.status == 1
    assert "squib: creating VM new: boot\n" in ended.err


def test_json_shows_no_steps(squib: Squib, create: list[str], engine: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_QUIET_S", 0)
    ended = squib(*create, "--json")
    assert (ended.err, ended.json["name"]) == ("", "new")


def test_a_vm_that_does_not_boot_is_removed(squib: Squib, create: list[str], engine: Served) -> None:
    engine.rig.driver.behaviour = "--die"
    ended = squib(*create)
    assert (ended.status, ended.out) == (1, b"")
    assert [vm["name"] for vm in squib("ls", "--json").json] == ["web"]


def test_a_name_that_is_taken_is_an_error(squib: Squib, create: list[str], tmp_path: Path) -> None:
    ended = squib(*create[:-1], "web")
    assert ended.status == 1
    assert "'web' is already the ID or name of" in ended.err


def test_verbose_says_which_driver_a_vm_gets_and_why(squib: Squib, engine: Served, host_files: list[str]) -> None:
    shown = squib("create", *host_files, "--no-start", "-v").err
    assert "driver fake (none): it is the first choice, and works here" in shown


def test_the_environment_can_name_the_driver(squib: Squib, engine: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUIB_DRIVER", "xen")
    ended = squib("create")
    assert ended.status != 0 and "no driver 'xen'" in ended.err


def test_no_jailer_is_said_loudly_and_refused_by_a_driver_without_one(squib: Squib, engine: Served) -> None:
    ended = squib("create", "--no-jailer")
    assert ended.status == 2 and "jail" in ended.err
