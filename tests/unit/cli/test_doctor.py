"""``doctor``: what is shown, the status, and what ``--fix`` does."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from squib.cli.actions.fixes import BuildImage, BuildKernel, Run, plan
from squib.core import doctor
from squib.errors import EngineStartFailed
from squib.host import proc
from squib.models import Check, CheckStatus, Fix
from squib.paths import Home
from squib.sdk import httpclient
from tests.fakes.recorder import Recorder
from tests.unit.cli.conftest import Squib

MMDEBSTRAP = Fix(argv=("apt-get", "install", "mmdebstrap"), as_root=True)
QEMU = Fix(argv=("apt-get", "install", "--no-install-recommends", "qemu"), as_root=True)
KERNEL = Fix(argv=("squib", "kernel", "build"))

OK = Check(name="python", status=CheckStatus.OK, detail="3.13")
WARN = Check(name="kernel", status=CheckStatus.WARN, detail="not there yet", fix=KERNEL)
FAIL = Check(name="mmdebstrap", status=CheckStatus.FAIL, detail="not installed", fix=MMDEBSTRAP)


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[Check]:
    """The checks of this host."""
    checks: list[Check] = []

    async def check_host(home: Home) -> list[Check]:
        return checks

    monkeypatch.setattr(doctor, "check_host", check_host)
    return checks


def test_each_check_has_a_line_and_each_fix_its_command(
    squib: Squib, checks: list[Check], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    checks += [OK, WARN, FAIL]
    ended = squib("doctor")
    lines = ended.text.splitlines()
    assert [line.split()[:2] for line in lines[1:5]] == [
        ["ok", "engine"],
        ["ok", "python"],
        ["warn", "kernel"],
        ["fail", "mmdebstrap"],
    ]
    assert "  sudo apt-get install mmdebstrap    # mmdebstrap" in lines
    assert "  squib kernel build    # kernel" in lines


@pytest.mark.parametrize(("found", "status"), [([OK], 0), ([OK, WARN], 0), ([WARN, FAIL], 1)])
def test_only_a_failure_makes_the_status_1(found: list[Check], status: int, squib: Squib, checks: list[Check]) -> None:
    checks += found
    assert squib("doctor").status == status
    ended = squib("doctor", "--json")
    assert (ended.status, ended.json["ok"]) == (status, status == 0)
    assert [check["name"] for check in ended.json["checks"]] == [
        "engine",
        *(check.name for check in found),
        "leftovers",
    ]


def test_an_engine_of_another_version_is_told(
    squib: Squib, checks: list[Check], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("squib.version.VERSION", "9.9")
    ended = squib("doctor")
    assert "this client is 9.9" in ended.text and "squib engine stop --force" in ended.text


def test_fix_is_for_this_host_only(squib: Squib, requests: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUIB_URL", "http://127.0.0.1:9")
    ended = squib("doctor", "--fix")
    assert (ended.status, requests.calls) == (2, [])
    assert "SQUIB_URL points to a remote engine" in ended.err


def test_fix_installs_all_packages_at_once_then_builds_then_looks_again(
    squib: Squib, checks: list[Check], requests: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks += [FAIL, WARN, FAIL.model_copy(update={"fix": QEMU})]
    ran: list[Sequence[str]] = []

    def call(argv: Sequence[str]) -> int:
        ran.append(argv)
        checks[:] = [OK, WARN]
        return 0

    monkeypatch.setattr(proc, "call", call)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    ended = squib("doctor", "--fix")
    assert ended.status == 0
    assert [" ".join(argv) for argv in ran] == [
        "apt-get update -qq",
        "apt-get install -qq -y --no-install-recommends mmdebstrap qemu",
    ]
    assert requests.made == ["GET /engine", "GET /doctor", "POST /kernels", "GET /engine", "GET /doctor"]
    assert "squib: apt-get update -qq\n" in ended.err


def test_a_fix_that_fails_is_an_error(squib: Squib, checks: list[Check], monkeypatch: pytest.MonkeyPatch) -> None:
    checks.append(FAIL)
    monkeypatch.setattr(proc, "call", lambda argv: 100)
    ended = squib("doctor", "--fix")
    assert ended.status == 1
    assert "failed with status 100" in ended.err


def test_nothing_to_fix_does_nothing(squib: Squib, checks: list[Check], requests: Recorder) -> None:
    checks += [OK, WARN.model_copy(update={"fix": Fix(argv=("usermod", "-aG", "kvm", "me"), as_root=True)})]
    assert squib("doctor", "--fix").status == 0
    assert requests.made == ["GET /engine", "GET /doctor"]


def test_where_no_engine_starts_the_host_is_looked_at_from_here(
    squib: Squib, checks: list[Check], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_engine(home: Home) -> None:
        raise EngineStartFailed("the engine ended before it was ready", detail="why")

    checks.append(FAIL)
    monkeypatch.setattr(httpclient, "ensure_engine", no_engine)
    monkeypatch.setenv("SQUIB_HOME", str(tmp_path))
    ended = squib("doctor", "--json")
    assert ended.status == 1
    assert [check["name"] for check in ended.json["checks"]] == ["engine", "mmdebstrap"]
    assert "why" in ended.json["checks"][0]["detail"]


def test_a_fix_is_data_in_json(squib: Squib, checks: list[Check]) -> None:
    checks += [OK, FAIL]
    _, ok, fail, _ = squib("doctor", "--json").json["checks"]
    assert (ok["fix"], fail["fix"]) == (None, {"argv": ["apt-get", "install", "mmdebstrap"], "as_root": True})


def test_a_fix_is_a_shell_line_that_quotes_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    fix = Fix(argv=("chown", "me", "/a directory/$HOME"), as_root=True)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert str(fix) == "sudo chown me '/a directory/$HOME'"
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert str(fix) == "chown me '/a directory/$HOME'"


def test_a_plan_runs_apt_with_sudo_for_others_than_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    steps = plan([Fix(argv=("apt-get", "install", "-y", "a", "b")), Fix(argv=("apt-get", "install", "b", "c"))])
    assert steps == [
        Run(("sudo", "apt-get", "update", "-qq")),
        Run(("sudo", "apt-get", "install", "-qq", "-y", "--no-install-recommends", "a", "b", "c")),
    ]


def test_a_plan_leaves_out_what_only_a_person_should_do() -> None:
    commands = ["rm -r -- /x", "kill 7", "squib image build base", "squib kernel build --rebuild", "chmod 700 /x"]
    fixes = [Fix(argv=tuple(command.split())) for command in commands]
    assert plan(fixes) == [BuildImage("base", False), BuildKernel(True)]
