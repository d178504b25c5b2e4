"""The command line in this process, against an engine that only answers."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from squib.cli import main
from squib.cli.args import options
from tests.fakes.api import FakeAPI


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
