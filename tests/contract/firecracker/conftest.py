"""Fixtures of the Firecracker suite: each test of ``vmm`` runs on the stub as 1.10 and 1.16, and on a real one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.firecracker.vmm import Vmm, binary, running
from tests.fakes.firecracker.install import Stub, install


@pytest.fixture(params=["stub-1.16.1", "stub-1.10.1", "real"])
def vmm(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vmm]:
    monkeypatch.chdir(tmp_path)
    path, version = binary(request.param, tmp_path / "bin")
    with running(path, version, tmp_path) as started:
        yield started


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    """A stub that does not run yet."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    return install(tmp_path / "bin")
