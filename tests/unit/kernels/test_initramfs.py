import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from squib.errors import InvalidArgument
from squib.kernels.catalog import Kernel
from squib.kernels.initramfs import InitramfsStore
from squib.paths import Home
from tests.fakes.kernels import VERSION, module
from tests.unit.kernels.test_cpio import read_archive


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    path = tmp_path / "squib-agent"
    path.write_bytes(b"\x7fELF agent")
    return path


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    tree = tmp_path / "modules"
    tree.mkdir()
    (tree / "virtio_blk.ko").write_bytes(module("virtio_blk", "ring"))
    (tree / "ring.ko").write_bytes(module("ring"))
    now = datetime.now(UTC)
    return Kernel(VERSION, "sha256:0", tmp_path / "vmlinux", None, tree, ("ring", "virtio_blk"), 1, now)


def test_it_holds_what_the_contract_asks_for(home: Home, kernel: Kernel, agent: Path) -> None:
    path = InitramfsStore(home).ensure(kernel, agent)
    found = read_archive(path.read_bytes())
    assert found["init"].data == agent.read_bytes()
    assert found["init"].mode & 0o7777 == 0o755
    assert found["squib/modules.list"].data == b"ring.ko\nvirtio_blk.ko\n"
    assert found["squib/modules/virtio_blk.ko"].data == module("virtio_blk", "ring")
    assert {"dev", "proc", "sys", "newroot"} <= found.keys()
    assert found["dev/console"].device == (5, 1)
    parents = [str(Path(name).parent) for name in found]
    assert all(parent == "." or list(found).index(parent) < index for index, parent in enumerate(parents))


def test_it_is_written_once_and_every_user_can_read_it(home: Home, kernel: Kernel, agent: Path) -> None:
    store = InitramfsStore(home)
    path = store.ensure(kernel, agent)
    stamp = path.stat()
    assert store.ensure(kernel, agent) == path
    assert path.stat() == stamp or path.stat().st_mtime_ns == stamp.st_mtime_ns
    assert stamp.st_mode & 0o777 == 0o444
    assert list(home.building.iterdir()) == []


def test_another_agent_or_module_makes_another(home: Home, kernel: Kernel, agent: Path) -> None:
    store = InitramfsStore(home)
    paths = {store.ensure(kernel, agent)}
    agent.write_bytes(b"\x7fELF newer agent")
    paths.add(store.ensure(kernel, agent))
    assert kernel.modules_dir is not None
    (kernel.modules_dir / "ring.ko").write_bytes(module("ring") + b"newer")
    paths.add(store.ensure(kernel, agent))
    assert len(paths) == 3


def test_the_same_content_has_the_same_bytes(tmp_path: Path, kernel: Kernel, agent: Path) -> None:
    one, two = (InitramfsStore(Home(tmp_path / name)).ensure(kernel, agent) for name in ("one", "two"))
    assert one.name == two.name
    assert one.read_bytes() == two.read_bytes()


def test_threads_that_write_it_at_once_do_no_harm(home: Home, kernel: Kernel, agent: Path) -> None:
    paths = []
    threads = [
        threading.Thread(target=lambda: paths.append(InitramfsStore(home).ensure(kernel, agent))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 4
    assert len(set(paths)) == 1
    assert "init" in read_archive(paths[0].read_bytes())


def test_a_missing_agent_is_refused(home: Home, kernel: Kernel, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="nowhere"):
        InitramfsStore(home).ensure(kernel, tmp_path / "nowhere")
