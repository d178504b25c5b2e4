"""``install``: what is installed, shown, and asked of the network."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from squib.drivers.firecracker import releases as known
from squib.drivers.firecracker.installed import find_release
from squib.drivers.firecracker.version import show_version
from tests.fakes import releases
from tests.fakes.served import Served
from tests.fakes.web import Web
from tests.unit.cli.conftest import Squib

ARCHIVE = releases.archive()
DIGEST = releases.sha256(ARCHIVE)
PATH = "/v1.16.1/firecracker-v1.16.1-x86_64.tgz"


@pytest.fixture(autouse=True)
def _clean(engine: Served) -> Iterator[None]:
    yield
    for path in engine.rig.home.bin.iterdir() if engine.rig.home.bin.exists() else ():
        if path.is_symlink():
            path.unlink()


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setitem(known.SHA256, (1, 16, 1), DIGEST)
    with Web().running() as web:
        monkeypatch.setenv("SQUIB_FIRECRACKER_URL", f"{web.url}/")
        web.serve(PATH, ARCHIVE)
        yield web


def test_a_release_is_installed_from_a_mirror(squib: Squib, engine: Served, web: Web) -> None:
    ended = squib("install", "firecracker")
    home = engine.rig.home
    assert ended.status == 0
    assert ended.text.splitlines() == [
        f"installed Firecracker 1.16.1 in {home.firecracker}",
        f"sha256 {DIGEST}  the archive",
        f"sha256 {releases.sha256(releases.firecracker())}  firecracker",
        f"sha256 {releases.sha256(releases.jailer())}  jailer",
    ]
    assert squib("install", "firecracker").text.startswith("already installed: Firecracker 1.16.1")
    assert web.paths == [PATH]


def test_the_result_is_data_in_json(squib: Squib, engine: Served, tmp_path: Path) -> None:
    given = str(releases.folder(tmp_path / "given", "1.15.1"))
    assert squib("install", "firecracker", "--from", given, "--json").json == {
        "program": "firecracker",
        "version": "1.15.1",
        "path": str(engine.rig.home.firecracker),
        "archive_sha256": None,
        "files": {
            "firecracker": releases.sha256(releases.firecracker("1.15.1")),
            "jailer": releases.sha256(releases.jailer("1.15.1")),
        },
        "changed": True,
    }
    assert squib("install", "firecracker", "--from", given, "--json").json["changed"] is False


def test_what_takes_long_is_shown(squib: Squib, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("squib.cli.progress._QUIET_S", 0.0)
    ended = squib("install", "firecracker")
    steps = [line.split()[2] for line in ended.err.splitlines()]
    assert steps[-2:] == ["download", "check"] and set(steps[:-2]) <= {"connecting"}


def test_a_failed_download_says_what_to_do_without_it(squib: Squib, engine: Served, web: Web) -> None:
    del web.pages[PATH]
    ended = squib("install", "firecracker", "--json")
    assert (ended.status, ended.out, ended.error["code"]) == (1, b"", "download_failed")
    assert f"{web.url}{PATH} cannot be downloaded: the server answered 404" in ended.error["message"]
    assert "--from FILE" in ended.error["hint"]
    assert find_release(engine.rig.home) is None


def test_a_version_of_unknown_digest_says_how_to_give_it(squib: Squib, web: Web) -> None:
    ended = squib("install", "firecracker", "--version", "1.99.0")
    assert ended.status == 2
    assert "hint: give it: --sha256 HEX" in ended.err
    assert web.paths == []


@pytest.mark.parametrize(
    "arguments", [["qemu"], [], ["firecracker", "--sha256", "x"], ["firecracker", "--from", "/nowhere"]]
)
def test_what_is_no_argument_is_refused(arguments: list[str], squib: Squib) -> None:
    assert squib("install", *arguments).status == 2


def test_installing_is_for_this_host_only(squib: Squib, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUIB_URL", "http://127.0.0.1:9")
    ended = squib("install", "firecracker")
    assert ended.status == 2
    assert "SQUIB_URL points to a remote engine" in ended.err


def test_the_help_names_the_default_version(squib: Squib) -> None:
    assert f"Default: {show_version(known.DEFAULT_VERSION)}." in squib("install", "--help").text
