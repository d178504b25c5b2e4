import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from squib.artifacts.checked import record_path
from squib.errors import InvalidArgument
from squib.kernels import modules
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
    (tree / "kvm.ko").write_bytes(module("kvm", "ring"))
    names, now = ("ring", "virtio_blk"), datetime.now(UTC)
    return Kernel(
        VERSION, "sha256:0", tmp_path / "vmlinux", None, tree, names, 1, now, extra_modules={"nested": ("kvm",)}
    )


@pytest.mark.anyio
async def test_it_holds_the_files_of_the_contract(home: Home, kernel: Kernel, agent: Path) -> None:
    path = await InitramfsStore(home).ensure(kernel, agent)
    found = read_archive(path.read_bytes())
    assert found["init"].data == agent.read_bytes()
    assert found["init"].mode & 0o7777 == 0o755
    assert found["squib/modules.list"].data == b"ring.ko\nvirtio_blk.ko\n"
    assert found["squib/modules/virtio_blk.ko"].data == module("virtio_blk", "ring")
    assert {"dev", "proc", "sys", "newroot"} <= found.keys()
    assert found["dev/console"].device == (5, 1)
    parents = [str(Path(name).parent) for name in found]
    assert all(parent == "." or list(found).index(parent) < index for index, parent in enumerate(parents))


@pytest.mark.anyio
@pytest.mark.parametrize("cached", [False, True])
async def test_a_nested_guest_has_an_archive_with_more_modules(
    home: Home, kernel: Kernel, agent: Path, cached: bool
) -> None:
    if cached:
        kernel = replace(kernel, path=home.kernels / "sha256-0" / "vmlinux", digest=f"sha256:{'5c' * 32}")
    store = InitramfsStore(home)
    plain, nested = await store.ensure(kernel, agent), await store.ensure(kernel, agent, extras=["nested"])
    assert read_archive(nested.read_bytes())["squib/modules.list"].data == b"ring.ko\nvirtio_blk.ko\nkvm.ko\n"
    assert "squib/modules/kvm.ko" not in read_archive(plain.read_bytes())
    store.prune(kernels=[kernel.path], agent=agent)
    assert plain.exists() and nested.exists()
    store.prune(kernels=[], agent=agent)
    assert list(home.initramfs.iterdir()) == []


@pytest.mark.anyio
async def test_it_is_written_once_and_every_user_can_read_it(home: Home, kernel: Kernel, agent: Path) -> None:
    store = InitramfsStore(home)
    path = await store.ensure(kernel, agent)
    stamp = path.stat()
    assert await store.ensure(kernel, agent) == path
    assert path.stat() == stamp or path.stat().st_mtime_ns == stamp.st_mtime_ns
    assert stamp.st_mode & 0o777 == 0o444
    assert list(home.building.iterdir()) == []


@pytest.mark.anyio
async def test_another_agent_or_module_makes_another(home: Home, kernel: Kernel, agent: Path) -> None:
    store = InitramfsStore(home)
    paths = {await store.ensure(kernel, agent)}
    agent.write_bytes(b"\x7fELF newer agent")
    paths.add(await store.ensure(kernel, agent))
    assert kernel.modules_dir is not None
    (kernel.modules_dir / "ring.ko").write_bytes(module("ring") + b"newer")
    paths.add(await store.ensure(kernel, agent))
    assert len(paths) == 3


@pytest.mark.anyio
async def test_modules_of_a_kernel_in_the_cache_are_read_only_to_build(
    home: Home, kernel: Kernel, agent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = InitramfsStore(home)
    cached = replace(kernel, path=home.kernels / "sha256-0" / "vmlinux", digest=f"sha256:{'5c' * 32}")
    path = await store.ensure(cached, agent)
    assert "squib/modules/ring.ko" in read_archive(path.read_bytes())
    monkeypatch.setattr(modules, "load_order", None)
    assert await store.ensure(cached, agent) == path
    with pytest.raises(TypeError):
        await store.ensure(replace(cached, digest=f"sha256:{'6c' * 32}"), agent)


@pytest.mark.anyio
async def test_the_same_content_has_the_same_bytes(tmp_path: Path, kernel: Kernel, agent: Path) -> None:
    one, two = [await InitramfsStore(Home(tmp_path / name)).ensure(kernel, agent) for name in ("one", "two")]
    assert one.name == two.name
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.anyio
async def test_concurrent_stores_build_it_once(home: Home, kernel: Kernel, agent: Path) -> None:
    steps: list[str] = []
    ensure = (InitramfsStore(home).ensure(kernel, agent, lambda p: steps.append(p.step)) for _ in range(4))
    paths = await asyncio.gather(*ensure)
    assert len(set(paths)) == 1
    assert steps.count("initramfs") == 1
    assert "init" in read_archive(paths[0].read_bytes())


@pytest.mark.anyio
async def test_a_truncated_archive_is_built_again(home: Home, kernel: Kernel, agent: Path) -> None:
    store = InitramfsStore(home)
    path = await store.ensure(kernel, agent)
    whole = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(b"")
    assert (await store.ensure(kernel, agent)).read_bytes() == whole


@pytest.mark.anyio
async def test_prune_keeps_the_archives_of_the_kernels_and_the_agent_in_use(
    home: Home, kernel: Kernel, agent: Path, tmp_path: Path
) -> None:
    store = InitramfsStore(home)
    former_agent = await store.ensure(kernel, agent)
    agent.write_bytes(b"\x7fELF newer agent")
    kept = await store.ensure(kernel, agent)
    other_kernel = await store.ensure(replace(kernel, path=tmp_path / "other"), agent)
    former_name = home.initramfs / f"{'0' * 64}.cpio"
    former_name.write_bytes(b"of a former squib")
    record_path(former_agent).with_name("lone.cpio.record").write_text("{")
    store.prune(kernels=[kernel.path], agent=tmp_path / "nowhere")
    assert other_kernel.exists()
    store.prune(kernels=[kernel.path], agent=agent)
    assert {*home.initramfs.iterdir()} == {kept, record_path(kept)}
    assert await store.ensure(kernel, agent) == kept


@pytest.mark.anyio
async def test_a_missing_agent_is_refused(home: Home, kernel: Kernel, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="nowhere"):
        await InitramfsStore(home).ensure(kernel, tmp_path / "nowhere")
