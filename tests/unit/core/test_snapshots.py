"""Snapshots, VMs made from them, rollback and the tree."""

import asyncio
from pathlib import Path

import pytest

from squib.core import references
from squib.core.engine import Engine
from squib.core.lifecycle.create import create_vm
from squib.core.lifecycle.delete import delete_vm
from squib.core.lifecycle.pause import resume_vm
from squib.core.lifecycle.start import start_vm
from squib.core.lifecycle.stop import stop_vm
from squib.core.lifecycle.suspend import suspend_vm
from squib.core.snapshots import catalog
from squib.core.snapshots.rollback import rollback_vm
from squib.core.snapshots.snapshot import create_snapshot, delete_snapshot
from squib.core.snapshots.tree import tree
from squib.drivers.base import SavedMemory
from squib.errors import DiskFull, InvalidArgument, NameTaken, NotFound, RecordCorrupt, Unsupported, WrongState
from squib.host import files
from squib.models import TreeKind, VMConfig, VMState
from squib.store.records import VMRecord
from tests.fakes.engine import Rig

pytestmark = pytest.mark.anyio


async def create(engine: Engine, rig: Rig, name: str = "web", *, start: bool = True, **fields: object) -> VMRecord:
    config = rig.config.model_copy(update={"name": name, "cold": True} | fields)
    return await create_vm(engine, config, start=start, on_progress=lambda _: None, boot_timeout_s=5)


async def from_snapshot(engine: Engine, ref: str, name: str, *, start: bool = True, cold: bool = False) -> VMRecord:
    config = VMConfig(name=name, snapshot=ref, **({"cold": True} if cold else {}))
    return await create_vm(engine, config, start=start, on_progress=lambda _: None, boot_timeout_s=5)


def write_disk(engine: Engine, vm: VMRecord, text: str) -> None:
    with engine.home.vm(vm.vm_id).overlay.open("r+b") as disk:
        disk.write(text.encode().ljust(16))


def disk(engine: Engine, vm: VMRecord) -> str:
    with engine.home.vm(vm.vm_id).overlay.open("rb") as disk:
        return disk.read(16).decode().strip(" \0")


def goes_on(rig: Rig) -> bool:
    return isinstance(rig.driver.launched[-1].memory, SavedMemory)


def entries(engine: Engine) -> list[str]:
    return sorted(path.name for path in engine.home.snapshots.iterdir())


async def test_a_snapshot_outlives_its_vm_and_makes_any_number_of_vms(rig: Rig) -> None:
    async with rig.running() as engine:
        vm = await create(engine, rig, env_vars={"A": "1", "S": "\udcff"})
        write_disk(engine, vm, "first")
        made = await create_snapshot(engine, "web", name="s1")
        assert engine.store.get_vm("web").state is VMState.RUNNING
        write_disk(engine, vm, "later")
        await delete_vm(engine, "web")
        for name in ("a", "b"):
            found = await from_snapshot(engine, "s1", name)
            assert (found.state, goes_on(rig), disk(engine, found)) == (VMState.RUNNING, True, "first")
            assert found.spec.env_vars == {"A": "1", "S": "\udcff"}
            assert found.machine_id != vm.machine_id
            write_disk(engine, found, name)
    async with rig.running() as engine:  # in a later engine too
        assert disk(engine, await from_snapshot(engine, made.id, "c")) == "first"
        await delete_snapshot(engine, "s1")
        assert entries(engine) == []
        assert [disk(engine, engine.store.get_vm(name)) for name in ("a", "b", "c")] == ["a", "b", "first"]
        with pytest.raises(NotFound, match="no snapshot s1"):
            await from_snapshot(engine, "s1", "d")


async def test_a_vm_made_and_not_started_goes_on_when_it_starts_though_the_snapshot_is_gone(rig: Rig) -> None:
    async with rig.running() as engine:
        await create(engine, rig)
        await create_snapshot(engine, "web", name="s1")
        found = await from_snapshot(engine, "s1", "a", start=False)
        assert found.state is VMState.CREATED
        await delete_snapshot(engine, "s1")
        assert (await start_vm(engine, "a")).state is VMState.RUNNING
        assert goes_on(rig)
        await stop_vm(engine, "a")
        await start_vm(engine, "a")
        assert not goes_on(rig)  # and then boots, as any VM


async def test_no_resume_leaves_it_paused(rig: Rig) -> None:
    async with rig.running() as engine:
        vm = await create(engine, rig)
        await create_snapshot(engine, "web", go_on=False)
        assert engine.store.get_vm("web").state is VMState.PAUSED
        assert await engine.running[vm.vm_id].machine.is_paused()
        await resume_vm(engine, "web")
        async with asyncio.timeout(5):
            await engine.running[vm.vm_id].agent.processes()


@pytest.mark.parametrize("state", ["created", "stopped", "suspended", "running"])
async def test_the_disk_of_any_vm_can_be_saved(rig: Rig, state: str) -> None:
    async with rig.running() as engine:
        vm = await create(engine, rig, start=state != "created")
        write_disk(engine, vm, "mine")
        if state == "stopped":
            await stop_vm(engine, "web")
        if state == "suspended":
            await suspend_vm(engine, "web")
        await create_snapshot(engine, "web", name="s1", disk_only=True)
        assert engine.store.get_vm("web").state == state
        assert catalog.find(engine.home, "s1").describe().disk_only
        found = await from_snapshot(engine, "s1", "a")
        assert (goes_on(rig), disk(engine, found)) == (False, "mine")


async def test_the_memory_of_a_suspended_vm_can_be_saved_and_that_of_a_stopped_one_not(rig: Rig) -> None:
    async with rig.running() as engine:
        vm = await create(engine, rig)
        write_disk(engine, vm, "mine")
        await suspend_vm(engine, "web")
        await create_snapshot(engine, "web", name="s1")
        assert disk(engine, await from_snapshot(engine, "s1", "a")) == "mine"
        assert goes_on(rig)
        await start_vm(engine, "web")
        await stop_vm(engine, "web")
        with pytest.raises(WrongState, match="cannot save its memory") as caught:
            await create_snapshot(engine, "web")
        assert "--disk-only" in caught.value.hint
        assert len(entries(engine)) == 1


async def test_names_are_unique_and_a_second_one_saves_nothing(rig: Rig) -> None:
    async with rig.running() as engine:
        await create(engine, rig)
        made = await create_snapshot(engine, "web", name="s1")
        for name in ("s1", made.id):
            with pytest.raises(NameTaken, match=name):
                await create_snapshot(engine, "web", name=name)
        both = await asyncio.gather(
            *(create_snapshot(engine, "web", name="s2") for _ in range(2)), return_exceptions=True
        )
        assert sorted(type(result).__name__ for result in both) == ["NameTaken", "Snapshot"]
        assert len(entries(engine)) == 2


async def test_a_full_disk_leaves_the_vm_running_and_no_snapshot(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise files.disk_full(rig.home.root)

    async with rig.running() as engine:
        vm = await create(engine, rig)
        for function in ("sparse_copy", "sync", "write_atomic"):
            with monkeypatch.context() as patch:
                patch.setattr(files, function, refuse)
                with pytest.raises(DiskFull):
                    await create_snapshot(engine, "web")
            assert (entries(engine), catalog.all_snapshots(engine.home)) == ([], [])
            async with asyncio.timeout(5):
                await engine.running[vm.vm_id].agent.processes()


async def test_what_a_killed_engine_left_is_no_snapshot_and_is_removed(rig: Rig) -> None:
    async with rig.engine() as engine:
        paths = catalog._unfinished(engine.home)
        paths.root.mkdir()
        (paths.root / "memory").write_text("half")
        assert catalog.all_snapshots(engine.home) == []
    async with rig.running() as engine:
        assert entries(engine) == []


@pytest.mark.parametrize("name", ["manifest.json", "memory", "devices", "overlay.ext4"])
async def test_a_damaged_snapshot_is_not_listed_and_not_removed(rig: Rig, name: str) -> None:
    async with rig.running() as engine:
        await create(engine, rig)
        made = await create_snapshot(engine, "web", name="s1")
        (made.paths.root / name).unlink()
        assert catalog.all_snapshots(engine.home) == []
        with pytest.raises(RecordCorrupt, match="is damaged"):
            references.referenced_digests(engine)
    async with rig.running() as engine:
        assert entries(engine) == [made.id]
        await delete_snapshot(engine, made.id)
        assert entries(engine) == []


async def test_another_vmm_is_named_and_the_disk_can_still_be_used(rig: Rig) -> None:
    async with rig.running() as engine:
        vm = await create(engine, rig)
        write_disk(engine, vm, "mine")
        await create_snapshot(engine, "web", name="s1")
        rig.driver.release = "fake 2.0"
        with pytest.raises(Unsupported, match=r"snapshot s1 .* VMM was fake 1.0, here it is fake 2.0") as caught:
            await from_snapshot(engine, "s1", "a")
        assert caught.value.hint.startswith("squib create --snapshot s1 --cold")
        assert [record.name for record in engine.store.list_vms()] == ["web"]
        found = await from_snapshot(engine, "s1", "a", cold=True)
        assert (goes_on(rig), disk(engine, found)) == (False, "mine")


async def test_the_machine_comes_from_the_snapshot(rig: Rig) -> None:
    async with rig.running() as engine:
        await create(engine, rig, vcpu_count=2)
        await create_snapshot(engine, "web", name="s1")
        for fields in ({"vcpu_count": 3}, {"runtime": "python3.13"}, {"driver": "qemu"}):
            with pytest.raises(InvalidArgument, match=f"{next(iter(fields))} cannot be set with a snapshot"):
                await create_vm(engine, VMConfig(snapshot="s1", **fields), start=True, on_progress=lambda _: None)
        config = VMConfig(snapshot="s1", vcpu_count=2, driver="fake", env_vars={"B": "2"}, cwd="/tmp")
        found = await create_vm(engine, config, start=True, on_progress=lambda _: None)
        assert (found.spec.vcpu_count, found.spec.cwd, found.spec.env_vars) == (2, "/tmp", {"B": "2"})


async def test_kernels_and_images_of_snapshots_are_kept(rig: Rig) -> None:
    async with rig.running() as engine:
        await create(engine, rig)
        await create_snapshot(engine, "web", name="s1")
        await delete_vm(engine, "web")
        assert references.host_kernels(engine) == {Path(str(rig.config.kernel_path))}
        await delete_snapshot(engine, "s1")
        assert references.host_kernels(engine) == set()


@pytest.mark.parametrize("state", ["running", "paused", "stopped", "suspended"])
async def test_a_rollback_takes_memory_and_disk_back_in_place(rig: Rig, state: str) -> None:
    async with rig.running() as engine:
        vm = await create(engine, rig)
        write_disk(engine, vm, "first")
        await create_snapshot(engine, "web", name="s1", go_on=state != "paused")
        write_disk(engine, vm, "second")
        if state == "stopped":
            await stop_vm(engine, "web")
        if state == "suspended":
            await suspend_vm(engine, "web")
        back = await rollback_vm(engine, "web", "s1", boot_timeout_s=5)
        assert (back.vm_id, back.state, goes_on(rig), disk(engine, back)) == (
            vm.vm_id, VMState.RUNNING, True, "first",
        )  # fmt: skip
        assert len(rig.vmms()) == 1
        write_disk(engine, vm, "third")
        assert disk(engine, await rollback_vm(engine, "web", "s1", boot_timeout_s=5)) == "first"


async def test_a_rollback_to_a_disk_boots(rig: Rig) -> None:
    async with rig.running() as engine:
        vm = await create(engine, rig)
        write_disk(engine, vm, "first")
        await create_snapshot(engine, "web", name="s1", disk_only=True)
        write_disk(engine, vm, "second")
        back = await rollback_vm(engine, "web", "s1", boot_timeout_s=5)
        assert (back.state, goes_on(rig), disk(engine, back)) == (VMState.RUNNING, False, "first")


async def test_a_rollback_that_cannot_be_changes_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise files.disk_full(rig.home.root)

    async with rig.running() as engine:
        vm = await create(engine, rig)
        await create(engine, rig, "other", vcpu_count=2)
        await create_snapshot(engine, "other", name="s2")
        write_disk(engine, vm, "mine")
        with pytest.raises(InvalidArgument, match="vcpu_count is 1, there 2"):
            await rollback_vm(engine, "web", "s2")
        await create_snapshot(engine, "web", name="s1")
        with pytest.raises(NotFound):
            await rollback_vm(engine, "web", "nosuch")
        for function in ("sparse_copy", "write_atomic"):
            with monkeypatch.context() as patch:
                patch.setattr(files, function, refuse)
                with pytest.raises(DiskFull):
                    await rollback_vm(engine, "web", "s1")
        rig.driver.release = "fake 2.0"
        with pytest.raises(Unsupported):
            await rollback_vm(engine, "web", "s1")
        after = engine.store.get_vm("web")
        assert (after.state, after.pid, disk(engine, vm)) == (VMState.RUNNING, vm.pid, "mine")


async def test_the_tree_shows_who_came_from_whom_also_of_those_that_are_gone(rig: Rig) -> None:
    async with rig.running() as engine:
        await create(engine, rig)
        snapshot = await create_snapshot(engine, "web", name="s1")
        a = await from_snapshot(engine, "s1", "a")
        b = await from_snapshot(engine, "s1", "b")
        names = [(node.name, node.kind, node.parent_id) for node in tree(engine)]
        web = engine.store.get_vm("web").vm_id
        assert names == [
            ("web", TreeKind.VM, None), ("s1", TreeKind.SNAPSHOT, web), ("a", TreeKind.VM, snapshot.id),
            ("b", TreeKind.VM, snapshot.id),
        ]  # fmt: skip
        await delete_snapshot(engine, "s1")
        await delete_vm(engine, "web")
        assert [(node.id, node.kind, node.parent_id) for node in tree(engine)] == [
            (snapshot.id, TreeKind.DELETED, None), (a.vm_id, TreeKind.VM, snapshot.id),
            (b.vm_id, TreeKind.VM, snapshot.id),
        ]  # fmt: skip


async def test_the_files_of_a_snapshot_belong_to_the_user_alone(rig: Rig) -> None:
    async with rig.running() as engine:
        await create(engine, rig, env_vars={"SECRET": "x"})
        made = await create_snapshot(engine, "web")
        assert made.paths.root.stat().st_mode & 0o077 == 0
        assert made.paths.manifest.stat().st_mode & 0o077 == 0


async def test_a_tree_with_a_loop_shows_all(rig: Rig) -> None:
    """An ID that a user chose is used again for a VM that is made from the old one's snapshot."""
    async with rig.running() as engine:
        await create(engine, rig, vm_id="foo")
        await create_snapshot(engine, "foo", name="s1")
        await delete_vm(engine, "foo")
        config = VMConfig(vm_id="foo", snapshot="s1")
        await create_vm(engine, config, start=True, on_progress=lambda _: None, boot_timeout_s=5)
        assert {node.name for node in tree(engine)} == {"foo", "s1"}


async def test_a_snapshot_that_fails_at_its_end_lets_the_vm_go_on(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise files.disk_full(rig.home.root)

    async with rig.running() as engine:
        vm = await create(engine, rig)
        with monkeypatch.context() as patch:
            patch.setattr(files, "sparse_sha256", refuse)
            with pytest.raises(DiskFull):
                await create_snapshot(engine, "web", go_on=False)
        assert engine.store.get_vm("web").state is VMState.RUNNING
        async with asyncio.timeout(5):
            await engine.running[vm.vm_id].agent.processes()
