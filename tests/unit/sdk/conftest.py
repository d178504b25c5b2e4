"""Client programs and the engine that they find by ``$SQUIB_HOME``."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from squib.host import cgroup
from squib.images import store as images
from squib.images.overlay import OverlayStore
from squib.kernels import catalog
from squib.sdk.syncfiles import Files
from squib.sdk.vm import VM
from tests.fakes import assets
from tests.fakes.engine import Rig, write_overlay
from tests.fakes.files import FakeFiles
from tests.fakes.served import Served


@pytest.fixture(autouse=True)
def nothing_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests away from the engine of the user who runs them."""
    for name in ("SQUIB_URL", "SQUIB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SQUIB_HOME", "/proc/nosuch/squib")


@pytest.fixture(scope="module")
def module_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OverlayStore, "create", write_overlay)
        patch.setattr(cgroup, "find_layout", cgroup.Layout)
        patch.setattr(images, "build_rootfs", assets.build_rootfs)
        patch.setattr(catalog, "_make", assets.build_kernel)
        with Served(Rig(tmp_path_factory.mktemp("served"))).running() as served:
            yield served


@pytest.fixture
def served(module_engine: Served, monkeypatch: pytest.MonkeyPatch) -> Served:
    """An engine, one for all tests of a module, that `EngineClient` finds."""
    monkeypatch.setenv("SQUIB_HOME", str(module_engine.rig.home.root))
    module_engine.rig.driver.behaviour = "--ok"
    return module_engine


@pytest.fixture
def guest(served: Served, tmp_path: Path) -> FakeFiles:
    """The files of ``web``, on a new directory."""
    root = tmp_path / "guest"
    root.mkdir()
    served.agent.files = FakeFiles(root)
    return served.agent.files


@pytest.fixture
def files(guest: FakeFiles) -> Files:
    return VM.from_id("web").files


@pytest.fixture
def filling_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Each disk of this machine says twice that it has room, and then that it has not: the answers that are left."""
    real = os.fstatvfs
    blocks = iter([10**6, 10**6])

    def fstatvfs(fd: int) -> os.statvfs_result:
        values = list(real(fd))
        values[1:5] = [4096, 10**7, 0, next(blocks, 10**5)]
        return os.statvfs_result(values)

    monkeypatch.setattr(os, "fstatvfs", fstatvfs)
    return blocks
