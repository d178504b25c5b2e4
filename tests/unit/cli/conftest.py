"""The command line in this process, against a real engine (`local_squib`) or one that only answers (`squib`)."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from squib.cli import main
from squib.cli.args import options
from squib.host import cgroup
from squib.images.overlay import OverlayStore
from tests.fakes.api import FakeAPI
from tests.fakes.engine import Rig, write_overlay
from tests.fakes.served import Served


@dataclass(frozen=True)
class Ended:
    """How a command line ended, and what it printed."""

    status: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        """The error that ``--json`` reports."""
        return json.loads(self.err)["error"]


Squib = Callable[..., Ended]


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> FakeAPI:
    api = FakeAPI()
    monkeypatch.setenv("SQUIB_URL", "http://127.0.0.1:9")  # what goes past the fake reaches nothing
    monkeypatch.setattr(options, "connect", api.client)
    return api


@pytest.fixture
def squib(api: FakeAPI, capfdbinary: pytest.CaptureFixture[bytes]) -> Squib:
    """Runs a command line: ``squib("exec", "web", "true")``."""

    def run(*arguments: str) -> Ended:
        status = main.run(arguments)
        out, err = capfdbinary.readouterr()
        return Ended(status, out, err.decode())

    return run


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A real engine with a fake driver and a running VM ``web``, one for all tests of a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OverlayStore, "create", write_overlay)
        patch.setattr(cgroup, "find_layout", cgroup.Layout)
        with Served(Rig(tmp_path_factory.mktemp("served"))).running() as served:
            yield served


@pytest.fixture
def local_squib(engine: Served, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Squib:
    """Runs a command line against the real engine."""
    monkeypatch.delenv("SQUIB_URL", raising=False)
    monkeypatch.setenv("SQUIB_HOME", str(engine.rig.home.root))

    def run(*arguments: str) -> Ended:
        status = main.run(arguments)
        out, err = capfdbinary.readouterr()
        return Ended(status, out, err.decode())

    return run
