"""The command line in this process, against a real engine with a fake driver."""

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import typer.main

from squib.cli import main
from squib.host import cgroup
from squib.images import store as images
from squib.images.overlay import OverlayStore
from squib.kernels import catalog
from tests.fakes import assets
from tests.fakes.engine import Rig, write_overlay
from tests.fakes.recorder import Recorder
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

_get_command = functools.cache(typer.main.get_command)
"""Typer builds all commands for each command line, which takes longer than most of these run."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A real engine with a fake driver and a running VM ``web``, one for all tests of a module.

    Kernels and images that it builds have a few bytes.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OverlayStore, "create", write_overlay)
        patch.setattr(cgroup, "find_layout", cgroup.Layout)
        patch.setattr(images, "build_rootfs", assets.build_rootfs)
        patch.setattr(catalog, "_make", assets.build_kernel)
        with Served(Rig(tmp_path_factory.mktemp("served"))).running() as served:
            yield served


@pytest.fixture
def squib(
    engine: Served, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> Iterator[Squib]:
    """Runs a command line against the engine: ``squib("exec", "web", "true")``."""
    monkeypatch.delenv("SQUIB_URL", raising=False)
    monkeypatch.setenv("SQUIB_HOME", str(engine.rig.home.root))
    monkeypatch.setattr("squib.sdk.client._HOLD_END_S", 0.05)
    monkeypatch.setattr(typer.main, "get_command", _get_command)

    def run(*arguments: str) -> Ended:
        status = main.run(arguments)
        out, err = capfdbinary.readouterr()
        return Ended(status, out, err.decode())

    yield run
    engine.clean_up()


@pytest.fixture
def requests(engine: Served) -> Recorder:
    """The requests of this test to the engine."""
    return engine.requests


@pytest.fixture
def host_files(engine: Served) -> list[str]:
    """Flags that name a kernel and a root filesystem, so that none are built."""
    config = engine.rig.config
    return ["--kernel", str(config.kernel_path), "--rootfs", str(config.rootfs_path)]
