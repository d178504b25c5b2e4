"""``uninstall``: what is asked, shown, removed and refused."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from squib.cli import main
from squib.drivers.firecracker.install import install_from
from squib.drivers.firecracker.installed import find_release
from squib.host.locks import FileLock
from squib.paths import Home
from tests.fakes import releases
from tests.fakes.engine import Rig
from tests.fakes.local import client, fake_engines, start_engine
from tests.fakes.served import Served
from tests.fakes.trees import names_in
from tests.processes import engines, until, watchdogs
from tests.unit.cli.conftest import Ended, Squib


@pytest.fixture
def alone(rig: Rig, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Iterator[Squib]:
    """Runs a command line with a state directory of its own, whose engines have a fake driver."""
    monkeypatch.setenv("SQUIB_HOME", str(rig.home.root))
    monkeypatch.delenv("SQUIB_URL", raising=False)

    def run(*arguments: str) -> Ended:
        status = main.run(arguments)
        out, err = capfdbinary.readouterr()
        return Ended(status, out, err.decode())

    with fake_engines(rig, monkeypatch):
        yield run


@pytest.fixture
def given(tmp_path: Path) -> Path:
    return releases.folder(tmp_path / "given")


def install(home: Home, given: Path) -> None:
    asyncio.run(install_from(home, given))


def test_firecracker_is_removed_without_an_engine(alone: Squib, rig: Rig, given: Path) -> None:
    install(rig.home, given)
    assert alone("uninstall", "firecracker") == Ended(0, b"removed Firecracker\n", "")
    assert alone("uninstall", "firecracker") == Ended(0, b"Firecracker is not installed\n", "")
    assert names_in(rig.home.bin) == []
    assert alone("uninstall", "firecracker", "--json").json == {"program": "firecracker", "removed": False, "vms": []}
    assert engines(rig.home) == []


def test_vms_of_another_driver_do_not_matter(squib: Squib, engine: Served, given: Path) -> None:
    install(engine.rig.home, given)
    assert squib("uninstall", "firecracker", "--json").json == {"program": "firecracker", "removed": True, "vms": []}


def test_vms_that_need_firecracker_are_named(
    squib: Squib, engine: Served, given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("squib.cli.commands.uninstall._DRIVER", engine.rig.driver.name)
    home = engine.rig.home
    install(home, given)
    ended = squib("uninstall", "firecracker")
    assert (ended.status, ended.out) == (1, b"")
    assert ended.err == (
        "squib: these VMs use Firecracker, and cannot start without it: web\nsquib: nothing was removed: add --yes\n"
    )
    assert find_release(home) is not None
    refused = squib("uninstall", "firecracker", "--json")
    assert (refused.status, refused.json) == (1, {"program": "firecracker", "removed": False, "vms": ["web"]})
    done = squib("uninstall", "firecracker", "--json", "--yes")
    assert (done.status, done.json) == (0, {"program": "firecracker", "removed": True, "vms": ["web"]})
    assert find_release(home) is None


@pytest.mark.parametrize("arguments", [[], ["firecracker", "--all"], ["qemu"], ["firecracker", "--vms"]])
def test_it_must_be_clear_what_to_remove(arguments: list[str], alone: Squib, rig: Rig) -> None:
    assert alone("uninstall", *arguments).status == 2
    assert not rig.home.root.exists()


def test_uninstalling_is_for_this_host_only(alone: Squib, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUIB_URL", "http://127.0.0.1:9")
    for arguments in (["firecracker"], ["--all", "--yes"]):
        ended = alone("uninstall", *arguments)
        assert ended.status == 2 and "SQUIB_URL points to a remote engine" in ended.err


def test_all_is_shown_and_then_removed(alone: Squib, rig: Rig, given: Path) -> None:
    install(rig.home, given)
    shown = alone("uninstall", "--all")
    assert shown.status == 1 and "nothing was removed: add --yes" in shown.err
    assert [line.split()[2] for line in shown.text.splitlines()[1:3]] == [str(rig.home.bin), str(rig.home.cache)]
    assert find_release(rig.home) is not None
    done = alone("uninstall", "--all", "--yes")
    assert done.status == 0 and f"removed {rig.home.root}\n" in done.text
    assert not rig.home.root.exists()
    again = alone("uninstall", "--all", "--yes")
    assert again == Ended(0, f"squib has no files in {rig.home.root}\n".encode(), "")
    assert not rig.home.root.exists()


def test_the_plan_is_data_in_json(
    alone: Squib, rig: Rig, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(rig.home, given)
    (rig.home.root / "mine").touch()
    monkeypatch.setattr("squib.cli.commands.uninstall._PACKAGES", {"sh": "dash", "nosuch": "nosuch"})
    plan = alone("uninstall", "--all", "--json")
    assert plan.status == 1
    assert [item["path"] for item in plan.json["items"]] == [str(rig.home.bin), str(rig.home.cache)]
    assert all(item["size_bytes"] > 0 and item["note"] == "" for item in plan.json["items"])
    rest = {key: value for key, value in plan.json.items() if key != "items"}
    assert rest == {
        "home": str(rig.home.root),
        "kept": [str(rig.home.root / "mine")],
        "vms": [],
        "snapshots": [],
        "packages": ["dash"],
        "removed": False,
    }
    done = alone("uninstall", "--all", "--json", "--yes")
    assert (done.status, done.json["removed"]) == (0, True)
    assert names_in(rig.home.root) == ["mine"]


def test_packages_are_kept_and_named(alone: Squib, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.home.locks.mkdir(parents=True)
    monkeypatch.setattr("squib.cli.commands.uninstall._PACKAGES", {"sh": "dash", "nosuch": "nosuch"})
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert "If nothing else needs them: sudo apt-get remove dash\n" in alone("uninstall", "--all", "-y").text


def test_an_install_in_progress_is_not_disturbed(alone: Squib, rig: Rig, given: Path) -> None:
    install(rig.home, given)
    with FileLock(rig.home.build_lock("firecracker")) as lock:
        lock.acquire()
        ended = alone("uninstall", "--all", "--yes")
    assert ended.status == 1 and "squib install is in progress" in ended.err
    assert find_release(rig.home) is not None


@pytest.mark.slow
def test_while_vms_exist_nothing_is_removed(alone: Squib, rig: Rig, given: Path) -> None:
    pid = start_engine(rig)
    install(rig.home, given)
    before = names_in(rig.home.root)
    ended = alone("uninstall", "--all", "--yes")
    assert ended.status == 1
    assert "squib: VMs exist: web\n" in ended.err and "squib uninstall --all --vms" in ended.err
    assert engines(rig.home) == [pid] and names_in(rig.home.root) == before
    with client(rig) as http:
        assert [vm["state"] for vm in http.get("/v1/vms").json()["vms"]] == ["running"]


@pytest.mark.slow
def test_with_vms_all_ends_and_nothing_is_left(alone: Squib, rig: Rig, given: Path) -> None:
    start_engine(rig)
    install(rig.home, given)
    ended = alone("uninstall", "--all", "--vms", "--yes", "--json")
    assert (ended.status, ended.json["vms"], ended.json["kept"]) == (0, ["web"], [])
    assert not rig.home.root.exists()
    assert rig.vmms() == []
    until(lambda: not engines(rig.home) and not watchdogs(rig.home), "something is left")
    assert not rig.home.root.exists()


@pytest.mark.slow
def test_an_engine_that_is_not_needed_is_stopped(alone: Squib, rig: Rig) -> None:
    start_engine(rig, with_vm=False)
    assert alone("uninstall", "--all", "-y").status == 0
    until(lambda: not engines(rig.home) and not watchdogs(rig.home), "something is left")
    assert not rig.home.root.exists()


@pytest.mark.slow
def test_vms_of_a_stopped_engine_count_too(alone: Squib, rig: Rig) -> None:
    start_engine(rig)
    assert alone("engine", "stop", "--force").status == 0
    ended = alone("uninstall", "--all", "--yes")
    assert ended.status == 1 and "VMs exist: web" in ended.err
    assert alone("uninstall", "--all", "--vms", "--yes").status == 0
    assert rig.vmms() == [] and not rig.home.root.exists()
