"""Forks: each has its own identity, disk and life; and what becomes of them when their parent, or one of them, ends."""

import asyncio
import os
import random

import pytest

from squib.core.engine import Engine
from squib.core.lifecycle import delete
from squib.core.lifecycle.create import create_vm
from squib.core.lifecycle.delete import delete_vm
from squib.core.lifecycle.stop import stop_vm
from squib.core.lifecycle.suspend import suspend_vm
from squib.core.snapshots.fork import fork_vm
from squib.core.snapshots.snapshot import create_snapshot
from squib.drivers.base import Disk, SavedMemory
from squib.errors import BootFailed, DiskFull, InvalidArgument, NameTaken, SquibError, WrongState
from squib.host import files
from squib.models import VMConfig, VMState
from squib.store.records import VMRecord
from tests.fakes.driver import FakeMachine
from tests.fakes.engine import Rig

pytestmark = pytest.mark.anyio
TREES = int(os.environ.get("SQUIB_TEST_TREES", "20"))
CLONES = int(os.environ.get("SQUIB_TEST_CLONES", "200"))


async def parent(engine: Engine, rig: Rig) -> VMRecord:
    config = rig.config.model_copy(update={"name": "web", "cold": True, "env_vars": {"A": "1"}})
    return await create_vm(engine, config, start=True, on_progress=lambda _: None, boot_timeout_s=5)


async def fork(engine: Engine, ref: str = "web", count: int = 1, *, ephemeral: bool = True) -> list[VMRecord]:
    made = await fork_vm(engine, ref, count=count, ephemeral=ephemeral, boot_timeout_s=5)
    assert all(isinstance(vm, VMRecord) for vm in made), made
    return [vm for vm in made if isinstance(vm, VMRecord)]


async def until_only(engine: Engine, *names: str) -> None:
    async with asyncio.timeout(5):
        while {vm.name for vm in engine.store.list_vms()} != set(names):
            await asyncio.sleep(0.01)


async def test_forks_run_from_the_parents_state_with_an_identity_of_their_own(rig: Rig) -> None:
    async with rig.running() as engine:
        vm = await parent(engine, rig)
        engine.home.vm(vm.vm_id).overlay.write_bytes(b"disk")
        forks = await fork_vm(engine, "web", count=3, name="try", boot_timeout_s=5)
        assert [fork.name for fork in forks if isinstance(fork, VMRecord)] == ["try-1", "try-2", "try-3"]
        for fork_, spec in zip(forks, rig.driver.launched[-3:], strict=True):
            assert isinstance(fork_, VMRecord) and isinstance(spec.memory, SavedMemory)
            assert (fork_.state, fork_.spec.env_vars) == (VMState.RUNNING, {"A": "1"})
            assert engine.home.vm(fork_.vm_id).overlay.read_bytes() == b"disk"
            assert not engine.home.vm(fork_.vm_id).saved.root.exists()
        identities = {(one.vm_id, one.machine_id) for one in engine.store.list_vms()}
        assert len(identities) == 4 and len({machine_id for _, machine_id in identities}) == 4
        assert list(engine.home.snapshots.iterdir()) == []
        async with asyncio.timeout(5):
            await engine.running[vm.vm_id].agent.processes()  # the parent goes on


async def test_ephemeral_forks_go_with_their_parent_and_persistent_ones_stay(rig: Rig) -> None:
    async with rig.running() as engine:
        await parent(engine, rig)
        [child] = await fork(engine)
        await fork(engine, child.vm_id)
        [kept] = await fork(engine, ephemeral=False)
        [kept_child] = await fork(engine, kept.vm_id)
        await delete_vm(engine, "web")
        await until_only(engine, kept.name, kept_child.name)
        await delete_vm(engine, kept.vm_id)
        await until_only(engine)
        assert rig.vmms() == []


async def test_an_ephemeral_fork_goes_when_it_stops_and_a_persistent_one_stays(rig: Rig) -> None:
    async with rig.running() as engine:
        await parent(engine, rig)
        [child] = await fork(engine)
        [kept] = await fork(engine, ephemeral=False)
        for vm in (child, kept):
            await stop_vm(engine, vm.vm_id)
        await until_only(engine, "web", kept.name)
        [child] = await fork(engine)
        await engine.running[child.vm_id].agent.poweroff(grace_s=0)  # by itself
        await until_only(engine, "web", kept.name)


@pytest.mark.parametrize("lost", ["parent", "vmm"])
async def test_the_next_engine_deletes_ephemeral_forks_too(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    async def nothing(*_: object) -> None:
        pass

    async with rig.engine() as engine:
        await parent(engine, rig)
        [child] = await fork(engine)
        if lost == "parent":
            with monkeypatch.context() as patch:
                patch.setattr(delete, "_delete_quietly", nothing)  # as if the engine were killed there
                await delete_vm(engine, "web")
        else:
            killed = engine.running[child.vm_id]
            assert killed.watcher
            killed.watcher.cancel()
            await killed.machine.kill()
    async with rig.running() as engine:
        await until_only(engine, *([] if lost == "parent" else ["web"]))


async def test_each_fork_has_a_result(rig: Rig) -> None:
    async with rig.running() as engine:
        await parent(engine, rig)
        rig.driver.first = ["--ok", "--die"]
        made = await fork_vm(engine, "web", count=3, boot_timeout_s=5)
        assert sorted(type(one) is VMRecord for one in made) == [False, True, True]
        assert [type(one) for one in made if isinstance(one, SquibError)] == [BootFailed]
        assert len(rig.vmms()) == 3


async def test_a_fork_that_cannot_begin_makes_none(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: object, **__: object) -> None:
        raise files.disk_full(rig.home.root)

    async with rig.running() as engine:
        vm = await parent(engine, rig)
        with pytest.raises(NameTaken):
            await fork_vm(engine, "web", name="web")
        with pytest.raises(InvalidArgument, match="invalid name"):
            await fork_vm(engine, "web", name="w" * 63, count=2)
        with monkeypatch.context() as patch:
            patch.setattr(FakeMachine, "save", full)
            with pytest.raises(DiskFull):
                await fork_vm(engine, "web", count=2)
        assert engine.store.list_vms() == [vm]
        assert list(engine.home.snapshots.iterdir()) == []
        await suspend_vm(engine, "web")
        with pytest.raises(WrongState, match="cannot fork it"):
            await fork_vm(engine, "web")


async def test_a_cancelled_fork_leaves_only_the_parent(rig: Rig) -> None:
    async with rig.running() as engine:
        vm = await parent(engine, rig)
        rig.driver.first = ["--ok", "--hang", "--hang"]
        forking = asyncio.create_task(fork_vm(engine, "web", count=3, boot_timeout_s=20))
        async with asyncio.timeout(5):
            while len(rig.driver.launched) < 3 or VMState.RUNNING not in {
                one.state for one in engine.store.list_vms() if one.vm_id != vm.vm_id
            }:
                await asyncio.sleep(0.01)
        forking.cancel()
        await asyncio.wait({forking})
        assert forking.cancelled()
        await until_only(engine, "web")
        assert rig.vmms() == [vm.pid]
        assert list(engine.home.snapshots.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(TREES))
async def test_forks_of_forks_are_deleted_in_any_order_and_the_others_work(rig: Rig, seed: int) -> None:
    chance = random.Random(seed)
    async with rig.running() as engine:
        family = [await parent(engine, rig)]
        line = {family[0].vm_id: ["web"]}
        for number in range(9):
            source = family[-1] if seed % 4 == 0 else chance.choice(family)  # one in four is ten generations deep
            engine.home.vm(source.vm_id).overlay.write_text("/".join(line[source.vm_id]))
            [made] = await fork(engine, source.vm_id, ephemeral=False)
            line[made.vm_id] = [*line[source.vm_id], str(number)]
            family.append(made)
        chance.shuffle(family)
        while family:
            await delete_vm(engine, family.pop().vm_id)
            for vm in family:
                await engine.running[vm.vm_id].agent.processes()
                came_with = engine.home.vm(vm.vm_id).overlay.read_text()
                assert came_with in ("/".join(line[vm.vm_id][:-1]), "/".join(line[vm.vm_id]))
        assert (rig.vmms(), list(rig.home.vms.iterdir()), engine.store.leases()) == ([], [], [])


@pytest.mark.slow
async def test_no_two_clones_have_the_same_disk(rig: Rig) -> None:
    """Created many at a time, by templates, forks and snapshots alike."""
    async with asyncio.timeout(120), rig.engine() as engine:
        try:
            web = await parent(engine, rig)
            await create_snapshot(engine, "web", name="s1")
            inodes: dict[tuple[int, int], str] = {}
            for _ in range(CLONES // 20):
                config = rig.config
                made = await asyncio.gather(
                    *(create_vm(engine, config, start=True, on_progress=lambda _: None) for _ in range(5)),
                    *(
                        create_vm(engine, VMConfig(snapshot="s1"), start=True, on_progress=lambda _: None)
                        for _ in range(5)
                    ),
                )
                made += await fork(engine, web.vm_id, 10)
                for vm in made:
                    disk = engine.home.vm(vm.vm_id).overlay
                    [used] = [disk.path for disk in launched(rig, vm) if disk.name == "overlay"]
                    assert used == disk
                    disk.write_text(vm.vm_id)
                    found = disk.stat()
                    inodes[found.st_dev, found.st_ino] = vm.vm_id
                assert len({vm.vm_id for vm in made}) == len(made) == 20
                assert all(engine.home.vm(vm.vm_id).overlay.read_text() == vm.vm_id for vm in made)
                assert set(inodes.values()) >= {vm.vm_id for vm in made}
                inodes.clear()
                await asyncio.gather(*(delete_vm(engine, vm.vm_id) for vm in made))
        finally:
            rig.clean_up()


def launched(rig: Rig, vm: VMRecord) -> tuple[Disk, ...]:
    """The disks that a VM was launched with."""
    return next(spec.disks for spec in rig.driver.launched if spec.vm_id == vm.vm_id)
