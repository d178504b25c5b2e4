"""``uninstall --all``: what squib made is removed, and nothing else."""

from pathlib import Path

import pytest

from squib.core.lifecycle.create import create_vm
from squib.core.uninstall import plan_removal, remove_all, vm_directories
from squib.drivers.firecracker import installed
from squib.errors import Conflict
from squib.host import sockets
from squib.host.locks import FileLock
from squib.paths import Home
from tests.fakes.engine import Rig
from tests.fakes.trees import names_in, snapshot

pytestmark = pytest.mark.anyio


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A state directory with all that an engine and an install leave."""
    home = Home(tmp_path / "home")
    for folder in (home.images, home.kernels, home.initramfs, home.overlays, home.building, home.locks, home.vms):
        folder.mkdir(parents=True)
    release = installed.make_unfinished(home)
    release.vmm.write_bytes(b"x" * 10_000)
    home.firecracker.symlink_to(release.root.name)
    for name in ("engine.lock", "start.lock", "engine.log", "engine.log.1", "token", ".token.abc"):
        (home.root / name).touch()
    for suffix in ("", "-wal", "-shm", ".v1", ".v1.partial", ".damaged", ".damaged-2", ".damaged-wal"):
        (home.root / f"squib.db{suffix}").touch()
    (home.images / "sha256-0").mkdir()
    (home.images / "sha256-0" / "rootfs").write_bytes(b"x" * 100_000)
    (home.vms / "vm-leftover").mkdir()
    sockets.listen(home.engine_socket).close()
    return home


def test_the_whole_state_directory_is_removed(home: Home, tmp_path: Path) -> None:
    plan = plan_removal(home)
    assert plan.kept == ()
    assert {item.path for item in plan.items} == set(home.root.iterdir())
    assert [item.path for item in plan.items][-2:] == [home.engine_lock, home.start_lock]
    assert remove_all(home) == plan
    assert names_in(tmp_path) == []
    assert plan_removal(home).items == remove_all(home).items == ()


def test_a_plan_changes_nothing(home: Home) -> None:
    before = snapshot(home.root)
    plan_removal(home)
    assert snapshot(home.root) == before


def test_sizes_are_those_on_the_disk(home: Home) -> None:
    with (home.overlays / "empty.ext4").open("wb") as file:
        file.truncate(1 << 40)
    sizes = {item.path: item.size_bytes for item in plan_removal(home).items}
    assert 100_000 <= sizes[home.cache] < 1 << 20
    assert 10_000 <= sizes[home.bin] < 100_000
    assert plan_removal(home).size_bytes == sum(sizes.values())


def test_what_squib_did_not_make_is_kept_and_named(home: Home) -> None:
    mine = [home.root / "mine", home.bin / "tool", home.cache / "notes", home.root / "folder"]
    for path in mine[:3]:
        path.write_text("mine")
    mine[3].mkdir()
    (home.root / "token.bak").touch()
    (home.root / "engine.log.2").mkdir()
    plan = remove_all(home)
    assert sorted(plan.kept) == sorted([*mine, home.root / "token.bak", home.root / "engine.log.2"])
    assert names_in(home.root) == ["bin", "cache", "engine.log.2", "folder", "mine", "token.bak"]
    assert (names_in(home.bin), names_in(home.cache)) == (["tool"], ["notes"])
    assert plan_removal(home).items == ()


@pytest.mark.parametrize("name", ["bin", "cache", "vms", "squib.db", "engine.log", "token"])
def test_a_link_is_removed_and_not_what_it_leads_to(name: str, home: Home, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (home.root / name).rename(elsewhere)
    (home.root / name).symlink_to(elsewhere)
    before = snapshot(elsewhere)
    [item] = [item for item in plan_removal(home).items if item.path == home.root / name]
    assert (item.size_bytes, item.note) == (0, f"only the link; it leads to {elsewhere}")
    remove_all(home)
    assert not home.root.exists()
    assert snapshot(elsewhere) == before


def test_links_inside_the_cache_lead_nowhere(home: Home, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("mine")
    (home.building / "image.1").mkdir()
    (home.building / "image.1" / "scratch").symlink_to(tmp_path / "outside")
    (home.cache / "images" / "link").symlink_to(tmp_path / "outside")
    remove_all(home)
    assert names_in(tmp_path) == ["outside"]
    assert (tmp_path / "outside" / "file").read_text() == "mine"


def test_a_state_directory_behind_a_link_is_emptied(home: Home, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(home.root)
    remove_all(Home(tmp_path / "link"))
    assert names_in(home.root) == []
    assert (tmp_path / "link").is_symlink()


async def test_vms_are_users_data(rig: Rig) -> None:
    async with rig.engine() as engine:
        vm = await create_vm(engine, rig.config, start=False, on_progress=lambda _: None)
        before = names_in(rig.home.root)
        with pytest.raises(Conflict, match=f"VMs exist: {vm.vm_id}"):
            remove_all(rig.home)
        assert vm_directories(rig.home) == [vm.vm_id]
        assert names_in(rig.home.root) == before


def test_an_install_in_progress_is_not_disturbed(home: Home) -> None:
    with FileLock(home.build_lock(installed.LOCK)) as lock:
        lock.acquire()
        with pytest.raises(Conflict, match="squib install is in progress"):
            remove_all(home)
    assert home.bin.exists()
    remove_all(home)
    assert not home.root.exists()


def test_a_directory_that_is_not_there_has_nothing_to_remove(tmp_path: Path) -> None:
    home = Home(tmp_path / "nowhere")
    assert plan_removal(home).items == remove_all(home).items == ()
    assert names_in(tmp_path) == []


async def test_all_that_an_engine_leaves_is_known(rig: Rig) -> None:
    async with rig.engine():
        pass
    assert plan_removal(rig.home).kept == ()
    remove_all(rig.home)
    assert not rig.home.root.exists()
