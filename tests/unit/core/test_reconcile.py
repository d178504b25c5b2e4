"""A new engine settles what a former one left, in any state in which that was killed."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from squib.core.engine import Engine
from squib.core.inspect import list_vms
from squib.core.lifecycle.create import create_vm
from squib.core.lifecycle.delete import delete_vm
from squib.core.lifecycle.pause import resume_vm
from squib.core.lifecycle.start import start_vm
from squib.core.lifecycle.stop import stop_vm
from squib.core.lifecycle.transitions import TRANSITIONS, UP, sources
from squib.drivers.firecracker.installed import make_unfinished
from squib.errors import EngineStartFailed
from squib.host.locks import FileLock
from squib.models import ExecRequest, VMState
from squib.protocol.frames import FrameDecoder, FrameKind
from squib.store.records import LeaseKind, Owner, VMRecord
from squib.store.repair import damaged_copies
from tests.fakes.engine import Rig


async def make(engine: Engine, rig: Rig, *, start: bool) -> VMRecord:
    return await create_vm(engine, rig.config, start=start, on_progress=lambda _: None)


def force_state(engine: Engine, vm_id: str, state: VMState) -> None:
    """What a kill in the middle of a verb leaves in the database."""
    assert engine.store.change_state(vm_id, expected=set(VMState), to=state)


@pytest.mark.anyio
async def test_a_running_vm_is_adopted_and_works(rig: Rig) -> None:
    async with rig.engine() as engine:
        vm = await make(engine, rig, start=True)
    assert rig.vmms() == [vm.pid]
    async with rig.engine() as engine:
        assert engine.store.get_vm(vm.vm_id) == vm
        async with await engine.running[vm.vm_id].agent.exec(ExecRequest(argv=["true"])) as response:
            decoder = FrameDecoder()
            kinds = [frame.kind async for chunk in response.stream() for frame in decoder.feed(chunk)]
        assert kinds[-1] is FrameKind.EXIT
        assert (await stop_vm(engine, vm.vm_id)).reason == "stopped"


@pytest.mark.anyio
async def test_the_end_of_an_adopted_vm_is_noticed(rig: Rig) -> None:
    async with rig.engine() as engine:
        vm = await make(engine, rig, start=True)
    async with rig.engine() as engine, asyncio.timeout(5):
        assert vm.pid
        os.kill(vm.pid, signal.SIGKILL)
        while engine.store.get_vm(vm.vm_id).state is VMState.RUNNING:
            await asyncio.sleep(0.01)
        assert engine.store.get_vm(vm.vm_id).state is VMState.ERROR
        assert (await start_vm(engine, vm.vm_id)).state is VMState.RUNNING


@pytest.mark.anyio
async def test_a_vm_that_ended_while_no_engine_ran_is_an_error(rig: Rig) -> None:
    async with rig.engine() as engine:
        vm = await make(engine, rig, start=True)
    rig.clean_up()
    async with rig.engine() as engine:
        found = engine.store.get_vm(vm.vm_id)
        assert (found.state, found.pid) == (VMState.ERROR, None)
        assert "no engine ran" in found.reason
        assert [lease.kind for lease in engine.store.leases()] == [LeaseKind.DIRECTORY]


@pytest.mark.anyio
@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("state", TRANSITIONS)
async def test_every_state_is_settled(rig: Rig, state: VMState, start: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A VM that claims to be in ``state``, with and without a VMM, ends up usable or gone."""
    monkeypatch.setattr("squib.core.reconcile._POWER_OFF_WAIT_S", 0.05)

    async with rig.engine() as engine:
        vm = await make(engine, rig, start=start)
        force_state(engine, vm.vm_id, state)
    async with rig.engine() as engine, asyncio.timeout(20):
        records = engine.store.list_vms()
        if state in (VMState.CREATING, VMState.DELETING):
            assert records == []
            assert engine.store.leases() == []
            assert list(rig.home.vms.iterdir()) == []
            return
        assert records[0].state in (
            VMState.CREATED,
            VMState.STOPPED,
            VMState.ERROR,
            VMState.RUNNING,
            VMState.PAUSED,
        )
        assert (records[0].state in UP) == (rig.vmms() != [])
        if records[0].state is VMState.PAUSED:
            await resume_vm(engine, vm.vm_id)
        assert (await start_vm(engine, vm.vm_id)).state is VMState.RUNNING
        assert len(rig.vmms()) == 1


@pytest.mark.anyio
async def test_a_lease_without_a_vm_is_released(rig: Rig) -> None:
    async with rig.engine() as engine:
        engine.store.add_lease(Owner.vm("vm-gone"), LeaseKind.DIRECTORY, "vm/vm-gone")
        (rig.home.vms / "vm-gone").mkdir()
    async with rig.engine() as engine:
        assert engine.store.leases() == []
        assert not (rig.home.vms / "vm-gone").exists()


@pytest.mark.anyio
async def test_what_a_killed_install_left_is_removed(rig: Rig) -> None:
    rig.home.root.mkdir()
    unfinished = make_unfinished(rig.home)
    async with rig.engine():
        assert not unfinished.root.exists()


@pytest.mark.anyio
async def test_only_one_engine_has_a_state_directory(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("squib.core.startup._LOCK_TIMEOUT_S", 0.05)

    async with rig.engine():
        with pytest.raises(EngineStartFailed, match="another engine"):
            async with rig.engine():
                pass


@pytest.mark.anyio
async def test_an_engine_that_waited_for_a_lock_that_was_removed_does_not_start(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while ``squib uninstall --all`` removes the state directory: the next engine locks another file."""
    rig.home.root.mkdir()
    with FileLock(rig.home.engine_lock) as held:
        held.acquire()

        async def end(_: float) -> None:
            rig.home.engine_lock.unlink()
            held.close()

        monkeypatch.setattr("squib.core.startup.asyncio.sleep", end)
        with pytest.raises(EngineStartFailed, match="was removed while the engine started"):
            async with rig.engine():
                pass
    assert not rig.home.database.exists()


@pytest.mark.anyio
async def test_a_state_directory_that_is_a_file_is_refused(rig: Rig, tmp_path: Path) -> None:
    rig.home.root.parent.mkdir(exist_ok=True)
    rig.home.root.write_text("")

    async def main() -> None:
        async with rig.engine():
            pass

    with pytest.raises(EngineStartFailed, match="cannot be used"):
        await main()


@pytest.mark.anyio
async def test_a_file_that_is_no_database_is_kept_and_replaced(rig: Rig) -> None:
    rig.home.root.mkdir()
    rig.home.database.write_bytes(b"not a database, but somebody's" * 100)
    async with rig.engine() as engine:
        assert engine.store.all_vms() == []
        await make(engine, rig, start=False)
    [kept] = damaged_copies(rig.home.database)
    assert kept.read_bytes().startswith(b"not a database")


def test_every_state_has_a_way_out() -> None:
    assert TRANSITIONS.keys() == set(VMState) - {VMState.DELETED, VMState.UNKNOWN}
    assert all(VMState.DELETING in targets for targets in TRANSITIONS.values())
    assert VMState.CREATING not in set().union(*TRANSITIONS.values())
    assert sources(VMState.RUNNING) == {VMState.CREATING, VMState.STARTING, VMState.PAUSED}


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (["UPDATE vms SET spec = 'x'"], "spec is not valid JSON"),
        (["DELETE FROM vms"], "the database lost it; its disk is"),
        (["DELETE FROM vms", "DELETE FROM leases"], "the database lost it; its disk is"),
    ],
)
@pytest.mark.anyio
async def test_a_vm_whose_record_is_damaged_or_lost_is_ended_listed_and_keeps_its_disk(
    rig: Rig, damage: list[str], reason: str
) -> None:
    async with rig.engine() as engine:
        vm = await make(engine, rig, start=True)
        for statement in damage:
            engine.store._db.execute(statement)
    assert len(rig.vmms()) == 1
    for _ in range(2):
        async with rig.engine() as engine:
            assert rig.vmms() == []
            assert rig.home.vm(vm.vm_id).overlay.exists()
            assert engine.store.list_vms() == []
            [info] = list_vms(engine)
            assert (info.vm_id, info.state) == (vm.vm_id, VMState.ERROR)
            assert reason in info.reason
    async with rig.engine() as engine:
        await delete_vm(engine, vm.vm_id)
        assert engine.store.leases() == [] and list(rig.home.vms.iterdir()) == []


@pytest.mark.anyio
async def test_a_running_vm_whose_leases_are_lost_can_be_stopped_and_deleted(rig: Rig) -> None:
    async with rig.engine() as engine:
        vm = await make(engine, rig, start=True)
        engine.store._db.execute("DELETE FROM leases")
    async with rig.engine() as engine:
        assert engine.store.get_vm(vm.vm_id).state is VMState.RUNNING
        await stop_vm(engine, vm.vm_id)
        assert rig.vmms() == []
        await delete_vm(engine, vm.vm_id)
        assert engine.store.leases() == [] and list(rig.home.vms.iterdir()) == []
