"""`kill -9` of the engine before and after every single write to its database, through a VM's whole life."""

import os
from pathlib import Path

import pytest

from squib.core.engine import Engine
from squib.core.lifecycle.create import create_vm
from squib.core.lifecycle.delete import delete_vm
from squib.core.lifecycle.release import release_owner
from squib.core.lifecycle.start import start_vm
from squib.core.lifecycle.stop import stop_vm
from squib.core.lifecycle.suspend import suspend_vm
from squib.core.snapshots.exporting import open_export
from squib.core.snapshots.fork import fork_vm
from squib.core.snapshots.importing import receiving
from squib.core.snapshots.rollback import rollback_vm
from squib.core.snapshots.snapshot import create_snapshot, delete_snapshot
from squib.host import cgroup, proc
from squib.host.locks import FileLock
from squib.host.processes import Process
from squib.images import store as images
from squib.images.overlay import OverlayStore
from squib.kernels import catalog
from squib.models import VMConfig
from squib.store.records import LeaseKind, Owner, OwnerKind
from tests.fakes import assets
from tests.fakes.engine import Rig, StubRig, write_overlay
from tests.kills import Life, check_every_change_of_a_directory, check_every_write, helpers


async def whole_life(engine: Engine, rig: Rig) -> None:
    await create_vm(engine, rig.config.model_copy(update={"vm_id": "first"}), start=False, on_progress=lambda _: None)
    await start_vm(engine, "first")
    await stop_vm(engine, "first")
    await create_vm(engine, rig.config.model_copy(update={"vm_id": "second"}), start=True, on_progress=lambda _: None)
    await delete_vm(engine, "second")
    await start_vm(engine, "first")
    await delete_vm(engine, "first")


async def life_of_saved_states(engine: Engine, rig: Rig) -> None:
    config = rig.config.model_copy(update={"vm_id": "first", "cold": True})
    await create_vm(engine, config, start=True, on_progress=lambda _: None)
    await suspend_vm(engine, "first")
    await start_vm(engine, "first")
    await create_snapshot(engine, "first", name="s1")
    await fork_vm(engine, "first", name="fork", ephemeral=False)
    await fork_vm(engine, "first", name="short-lived")
    await rollback_vm(engine, "first", "s1")
    await create_vm(engine, VMConfig(name="copy", snapshot="s1"), start=True, on_progress=lambda _: None)
    for name in ("first", "fork", "copy"):
        await delete_vm(engine, name)
    await delete_snapshot(engine, "s1")


async def life_of_a_moved_snapshot(engine: Engine, rig: Rig) -> None:
    """It goes into a file, and comes back when its kernel and its image are gone."""
    config = VMConfig(vm_id="first", disk_size_mib=16, cold=True)
    await create_vm(engine, config, start=True, on_progress=lambda _: None)
    await create_snapshot(engine, "first", name="s1")
    export = await open_export(engine, "s1")
    await delete_vm(engine, "first")
    await delete_snapshot(engine, "s1")
    engine.images.remove("base")
    engine.kernels.remove()
    async with receiving(engine, export.chunks()) as received:
        await received.publish()
    await create_vm(engine, VMConfig(name="copy", snapshot="s1"), start=True, on_progress=lambda _: None)
    await delete_snapshot(engine, "s1")
    await delete_vm(engine, "copy")


async def life_of_other_owners(engine: Engine, rig: Rig) -> None:
    """An owner of every kind but VM takes a directory and two processes, and releases them."""
    for kind in set(OwnerKind) - {OwnerKind.VM}:
        owner = Owner(kind, "x")
        engine.store.add_lease(owner, LeaseKind.DIRECTORY, owner.key())
        engine.directory(owner).mkdir(parents=True)
        for role in ROLES:
            engine.store.add_lease(owner, LeaseKind.PROCESS, owner.key(role))
            start_helper(engine, owner, role)
        await release_owner(engine, owner)


def start_helper(engine: Engine, owner: Owner, role: str) -> Process:
    identity = engine.identity(owner, role)
    with FileLock(identity.lock_path) as lock:
        assert lock.try_acquire()
        return proc.spawn(["sleep", "60"], lock=lock, log_path=engine.directory(owner) / f"{role}.log")


ROLES = ("server", "proxy")


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
def test_the_life_of_a_firecracker_whatever_the_write_that_was_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    monkeypatch.setattr(OverlayStore, "create", write_overlay)
    jailer = os.geteuid() == 0 and not cgroup.find_layout().missing
    if not jailer:
        monkeypatch.setattr(cgroup, "find_layout", cgroup.Layout)
    rig = StubRig(tmp_path, jailer=jailer)
    try:
        assert check_every_write(rig, whole_life, after=after) > 20
    finally:
        rig.clean_up()


@pytest.mark.slow
@pytest.mark.parametrize("life", [whole_life, life_of_saved_states, life_of_other_owners])
@pytest.mark.parametrize("after", [False, True])
def test_whatever_the_write_that_was_the_last(rig: Rig, life: Life, after: bool) -> None:
    assert check_every_write(rig, life, after=after) > 20  # both lives write more often than that


@pytest.mark.slow
def test_whatever_the_change_of_a_directory_that_was_the_last(rig: Rig) -> None:
    assert check_every_change_of_a_directory(rig, life_of_saved_states) > 60


@pytest.mark.slow
def test_whatever_the_change_of_a_directory_that_was_the_last_when_a_snapshot_is_moved(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "build_rootfs", assets.build_rootfs)
    monkeypatch.setattr(catalog, "_make", assets.build_kernel)
    assert check_every_change_of_a_directory(rig, life_of_a_moved_snapshot) > 60


@pytest.mark.parametrize("killed", ROLES)
@pytest.mark.anyio
async def test_an_owner_whose_process_was_killed_is_released(rig: Rig, killed: str) -> None:
    async with rig.running() as engine:
        owner = Owner(OwnerKind.TEMPLATE, "x")
        engine.store.add_lease(owner, LeaseKind.DIRECTORY, owner.key())
        engine.directory(owner).mkdir(parents=True)
        processes = {}
        for role in ROLES:
            engine.store.add_lease(owner, LeaseKind.PROCESS, owner.key(role))
            processes[role] = start_helper(engine, owner, role)
        await processes[killed].kill()
        await release_owner(engine, owner)
        for process in processes.values():
            await process.wait()
        assert (engine.store.leases(), engine.directory(owner).exists(), helpers(rig)) == ([], False, [])
