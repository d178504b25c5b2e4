"""Create, start, stop, delete: what each does in each state, and that failures leave nothing."""

import asyncio
import contextlib
import errno
import os
import random
import signal
import sqlite3
from contextlib import AbstractContextManager
from pathlib import Path
from unittest.mock import patch

import pytest

from squib.core.engine import Engine
from squib.core.guestio.exec import start_exec
from squib.core.inspect import get_vm, list_vms
from squib.core.lifecycle.create import create_vm, new_id
from squib.core.lifecycle.delete import delete_vm
from squib.core.lifecycle.pause import pause_vm, resume_vm
from squib.core.lifecycle.start import start_vm
from squib.core.lifecycle.stop import stop_vm
from squib.errors import (
    AgentUnreachable,
    BootFailed,
    BootTimeout,
    Conflict,
    DiskFull,
    HostError,
    InvalidArgument,
    NameTaken,
    NotFound,
    RecordCorrupt,
    Superseded,
    ToolFailed,
    Unsupported,
    WrongState,
)
from squib.guest.agent import AgentClient
from squib.models import ExecRequest, VMConfig, VMState
from squib.store.records import VMRecord
from tests.fakes.driver import FakeMachine
from tests.fakes.engine import Rig


async def make(engine: Engine, config: VMConfig, *, start: bool = False, **fields: object) -> VMRecord:
    return await create_vm(
        engine, config.model_copy(update=fields), start=start, on_progress=lambda _: None, boot_timeout_s=5
    )


async def until(engine: Engine, vm_id: str, state: VMState) -> VMRecord:
    async with asyncio.timeout(5):
        while (record := engine.store.get_vm(vm_id)).state is not state:
            await asyncio.sleep(0.01)
        return record


def nothing_left(engine: Engine, rig: Rig) -> None:
    assert engine.store.list_vms() == []
    assert engine.store.leases() == []
    assert list(rig.home.vms.iterdir()) == []
    assert rig.vmms() == []
    assert engine.running == {}


@pytest.mark.anyio
async def test_a_nested_vm_is_nested_at_every_start_and_refused_where_that_cannot_work(rig: Rig) -> None:
    async with rig.running() as engine:
        with pytest.raises(Unsupported, match="nested virtualization: it is a fake") as refused:
            await make(engine, rig.config, nested=True)
        assert refused.value.hint == "modprobe fake"
        nothing_left(engine, rig)
        rig.driver.nested = True
        vm = await make(engine, rig.config, start=True, nested=True)
        await stop_vm(engine, vm.vm_id, timeout_s=5)
        await start_vm(engine, vm.vm_id)
        plain = await make(engine, rig.config, start=True)
        nested, again, other = rig.driver.launched
        assert (nested.nested, again.nested, other.nested) == (True, True, False)
        assert nested.initramfs == again.initramfs != other.initramfs
        await stop_vm(engine, vm.vm_id, timeout_s=5)
        rig.driver.nested = False
        with pytest.raises(Unsupported):
            await start_vm(engine, vm.vm_id)
        assert get_vm(engine, vm.vm_id).state is VMState.ERROR
        await delete_vm(engine, vm.vm_id)
        await delete_vm(engine, plain.vm_id)


@pytest.mark.anyio
async def test_a_vm_is_created_started_stopped_started_and_deleted(rig: Rig) -> None:
    async with rig.running() as engine:
        vm = await make(engine, rig.config, name="web", env_vars={"A": "1"})
        assert (vm.state, vm.name, vm.pid) == (VMState.CREATED, "web", None)
        vm = await start_vm(engine, "web")
        assert (vm.state, [vm.pid]) == (VMState.RUNNING, rig.vmms())
        vm = await stop_vm(engine, vm.vm_id)
        assert (vm.state, vm.reason, vm.pid) == (VMState.STOPPED, "stopped", None)
        assert rig.vmms() == [] and [lease.kind for lease in engine.store.leases()] == ["directory"]
        assert (await start_vm(engine, "web")).state is VMState.RUNNING
        await delete_vm(engine, "web")
        nothing_left(engine, rig)


@pytest.mark.anyio
async def test_start_on_a_running_vm_is_a_no_op(rig: Rig) -> None:
    async with rig.running() as engine:
        vm = await make(engine, rig.config, start=True)
        assert await start_vm(engine, vm.vm_id) == vm
        assert rig.vmms() == [vm.pid]
        assert len(rig.driver.launched) == 1


@pytest.mark.anyio
async def test_a_paused_vm_stands_still_and_goes_on(rig: Rig) -> None:
    async with rig.running() as engine:
        vm = await make(engine, rig.config, start=True)
        assert (await pause_vm(engine, vm.vm_id)).state is VMState.PAUSED
        assert (await pause_vm(engine, vm.vm_id)).pid == vm.pid
        with pytest.raises(WrongState, match="is paused") as refused:
            await start_exec(engine, vm.vm_id, ExecRequest(argv=["true"]))
        assert refused.value.hint == f"squib resume {vm.name}"
        with pytest.raises(WrongState, match="is paused"):
            await start_vm(engine, vm.vm_id)
        assert (await resume_vm(engine, vm.vm_id)).state is VMState.RUNNING
        assert (await resume_vm(engine, vm.vm_id)).state is VMState.RUNNING
        (await start_exec(engine, vm.vm_id, ExecRequest(argv=["true"]))).close()


@pytest.mark.anyio
@pytest.mark.parametrize("verb", [stop_vm, delete_vm])
async def test_a_paused_vm_can_be_stopped_and_deleted(rig: Rig, verb: object) -> None:
    async with rig.running() as engine:
        vm = await make(engine, rig.config, start=True)
        await pause_vm(engine, vm.vm_id)
        await verb(engine, vm.vm_id)  # type: ignore[operator]
        assert rig.vmms() == []
        assert [record.reason for record in engine.store.list_vms()] == ["stopped"] * (verb is stop_vm)


@pytest.mark.anyio
async def test_a_paused_vm_whose_vmm_does_not_answer_is_stopped_all_the_same(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(machine: FakeMachine) -> None:
        raise ToolFailed("QEMU did not respond to cont")

    async with rig.running() as engine:
        vm = await make(engine, rig.config, start=True)
        await pause_vm(engine, vm.vm_id)
        monkeypatch.setattr(FakeMachine, "resume", refuse)
        stopped = await stop_vm(engine, vm.vm_id, timeout_s=0.1)
        assert (stopped.state, rig.vmms()) == (VMState.STOPPED, [])
        assert "did not power off" in stopped.reason


@pytest.mark.anyio
async def test_only_what_runs_can_be_paused_and_only_what_is_paused_resumed(rig: Rig) -> None:
    async with rig.running() as engine:
        vm = await make(engine, rig.config)
        for change in (pause_vm, resume_vm):
            with pytest.raises(WrongState, match="is created"):
                await change(engine, vm.vm_id)


@pytest.mark.anyio
async def test_many_starts_and_stops_at_once_settle(rig: Rig) -> None:
    async with rig.running() as engine:
        vm = await make(engine, rig.config)
        started = await asyncio.gather(*(start_vm(engine, vm.vm_id) for _ in range(10)))
        assert {record.state for record in started} == {VMState.RUNNING}
        assert len(rig.driver.launched) == 1
        stopped = await asyncio.gather(*(stop_vm(engine, vm.vm_id) for _ in range(10)))
        assert {record.state for record in stopped} == {VMState.STOPPED}
        await asyncio.gather(*(delete_vm(engine, vm.vm_id) for _ in range(5)))
        nothing_left(engine, rig)


@pytest.mark.anyio
async def test_a_boot_that_fails_leaves_nothing_of_a_create(rig: Rig) -> None:
    async with rig.running() as engine:
        rig.driver.behaviour = "--die"
        with pytest.raises(BootFailed, match="ended with status 3") as caught:
            await make(engine, rig.config, start=True)
        assert "last line" in caught.value.detail
        nothing_left(engine, rig)


@pytest.mark.anyio
async def test_a_panic_before_the_agent_answers_is_booted_again_and_logged(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    async with rig.running() as engine:
        rig.driver.first = ["--panic"]
        vm = await make(engine, rig.config, start=True)
        assert vm.state is VMState.RUNNING and engine.running[vm.vm_id].machine.pid == vm.pid
        assert len(rig.driver.launched) == 2
        [logged] = [record.getMessage() for record in caplog.records if record.name == "squib.boot"]
        assert f"{vm.vm_id} is booted again" in logged and "kernel panicked" in logged and "last line" in logged
        await delete_vm(engine, vm.vm_id)
        nothing_left(engine, rig)


@pytest.mark.anyio
@pytest.mark.parametrize(("behaviour", "launched"), [("--panic", 2), ("--panic-when-set-up", 1), ("--die", 1)])
async def test_only_one_early_panic_is_booted_again(rig: Rig, behaviour: str, launched: int) -> None:
    async with rig.running() as engine:
        rig.driver.behaviour = behaviour
        with pytest.raises(BootFailed):
            await make(engine, rig.config, start=True)
        assert len(rig.driver.launched) == launched
        nothing_left(engine, rig)


@pytest.mark.anyio
async def test_a_boot_that_fails_in_the_host_says_where(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/dev/kvm")

    async with rig.running() as engine:
        vm = await make(engine, rig.config)
        monkeypatch.setattr(rig.driver, "launch", refuse)
        with pytest.raises(PermissionError):
            await start_vm(engine, vm.vm_id)
        [failed] = engine.store.list_vms()
        assert (failed.state, failed.reason) == (VMState.ERROR, "/dev/kvm: Permission denied")


@pytest.mark.anyio
async def test_a_boot_that_hangs_times_out_and_leaves_nothing(rig: Rig) -> None:
    async with rig.running() as engine:
        rig.driver.behaviour = "--hang"
        with pytest.raises(BootTimeout, match=r"0\.3 s"):
            await create_vm(engine, rig.config, start=True, on_progress=lambda _: None, boot_timeout_s=0.3)
        nothing_left(engine, rig)


@pytest.mark.anyio
async def test_a_start_that_fails_is_an_error_that_can_be_tried_again(rig: Rig) -> None:
    async with rig.running() as engine:
        vm = await make(engine, rig.config)
        rig.driver.behaviour = "--die"
        with pytest.raises(BootFailed):
            await start_vm(engine, vm.vm_id)
        failed = engine.store.get_vm(vm.vm_id)
        assert failed.state is VMState.ERROR and "status 3" in failed.reason
        assert [lease.kind for lease in engine.store.leases()] == ["directory"]
        rig.driver.behaviour = "--ok"
        assert (await start_vm(engine, vm.vm_id)).state is VMState.RUNNING


@pytest.mark.anyio
@pytest.mark.parametrize("verb", [stop_vm, delete_vm])
async def test_stop_and_delete_end_a_start_that_is_under_way(rig: Rig, verb: object) -> None:
    async with rig.running() as engine:
        rig.driver.behaviour = "--hang"
        vm = await make(engine, rig.config)
        starting = asyncio.create_task(start_vm(engine, vm.vm_id, boot_timeout_s=30))
        await until(engine, vm.vm_id, VMState.STARTING)
        await verb(engine, vm.vm_id)  # type: ignore[operator]
        with pytest.raises(WrongState, match="superseded by a"):
            await starting
        if verb is delete_vm:
            nothing_left(engine, rig)
        else:
            assert engine.store.get_vm(vm.vm_id).state is VMState.STOPPED
            assert rig.vmms() == []


@pytest.mark.anyio
async def test_a_create_whose_client_leaves_is_undone(rig: Rig) -> None:
    async with rig.running() as engine:
        rig.driver.behaviour = "--hang"
        creating = asyncio.create_task(make(engine, rig.config, start=True))
        async with asyncio.timeout(5):
            while not rig.vmms():
                await asyncio.sleep(0.01)
        creating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await creating
        nothing_left(engine, rig)


@pytest.mark.anyio
async def test_a_deaf_guest_is_killed_by_stop(rig: Rig) -> None:
    async with rig.running() as engine:
        rig.driver.behaviour = "--deaf"
        vm = await make(engine, rig.config, start=True)
        stopped = await stop_vm(engine, vm.vm_id, timeout_s=0.2)
        assert stopped.state is VMState.STOPPED
        assert "did not power off within 0.2 s" in stopped.reason
        assert rig.vmms() == []


@pytest.mark.anyio
async def test_the_end_of_a_vmm_is_noticed_with_its_reason(rig: Rig) -> None:
    async with rig.running() as engine:
        vm = await make(engine, rig.config, start=True)
        assert vm.pid
        os.kill(vm.pid, signal.SIGKILL)
        ended = await until(engine, vm.vm_id, VMState.ERROR)
        assert "signal 9" in ended.reason
        assert (await start_vm(engine, vm.vm_id)).state is VMState.RUNNING


@pytest.mark.anyio
async def test_a_guest_that_powers_itself_off_is_stopped(rig: Rig) -> None:
    async with rig.running() as engine:
        vm = await make(engine, rig.config, start=True)
        with contextlib.suppress(AgentUnreachable):  # it may be gone before it has answered
            await engine.running[vm.vm_id].agent.poweroff(grace_s=0)
        assert (await until(engine, vm.vm_id, VMState.STOPPED)).reason == "the guest powered off"


@pytest.mark.anyio
async def test_ids_and_names_are_unique_among_each_other(rig: Rig) -> None:
    async with rig.running() as engine:
        vm = await make(engine, rig.config, vm_id="one", name="two")
        for fields in ({"vm_id": "one"}, {"vm_id": "two"}, {"name": "one"}, {"name": "two"}):
            with pytest.raises(NameTaken, match="already the ID or name of one"):
                await make(engine, rig.config, **fields)
        assert [info.vm_id for info in list_vms(engine)] == [vm.vm_id]
        assert get_vm(engine, "two").vm_id == "one"


def test_new_ids_are_names_and_differ() -> None:
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(VMConfig(vm_id=vm_id) for vm_id in ids)


@pytest.mark.anyio
async def test_stop_of_a_vm_that_does_not_run_changes_nothing(rig: Rig) -> None:
    async with rig.running() as engine:
        vm = await make(engine, rig.config)
        assert (await stop_vm(engine, vm.vm_id)).state is VMState.CREATED


@pytest.mark.anyio
async def test_unknown_vms_are_not_found(rig: Rig) -> None:
    async with rig.running() as engine:
        for verb in (start_vm, stop_vm, delete_vm):
            with pytest.raises(NotFound, match="'nosuch'"):
                await verb(engine, "nosuch")


@pytest.mark.anyio
async def test_a_missing_rootfs_or_kernel_changes_nothing(rig: Rig, tmp_path: Path) -> None:
    async with rig.running() as engine:
        for field in ("rootfs_path", "kernel_path"):
            with pytest.raises(InvalidArgument, match="missing"):
                await make(engine, rig.config, **{field: str(tmp_path / "missing")})
        nothing_left(engine, rig)


@pytest.mark.anyio
async def test_a_project_groups_vms(rig: Rig) -> None:
    async with rig.running() as engine:
        await make(engine, rig.config, project="a", name="in-a")
        await make(engine, rig.config, project="b", name="in-b")
        assert [vm.name for vm in list_vms(engine, project="a")] == ["in-a"]


@pytest.mark.anyio
async def test_values_of_the_environment_are_not_shown(rig: Rig) -> None:
    async with rig.running() as engine:
        vm = await make(engine, rig.config, env_vars={"TOKEN": "hunter2"})
        info = get_vm(engine, vm.vm_id)
        assert info.env_names == ["TOKEN"]
        assert "hunter2" not in repr(info) + info.model_dump_json() + repr(vm)


@pytest.mark.anyio
async def test_a_stop_that_failed_half_way_is_carried_through_by_the_next(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(self: AgentClient) -> None:
        raise HostError("of something unforeseen")

    async with rig.running() as engine:
        vm = await make(engine, rig.config, start=True)
        with monkeypatch.context() as patched, pytest.raises(HostError):
            patched.setattr(AgentClient, "close", fails)
            await stop_vm(engine, vm.vm_id, timeout_s=2)
        assert engine.store.get_vm(vm.vm_id).state is VMState.STOPPING
        stopped = await stop_vm(engine, vm.vm_id)
        assert (stopped.state, stopped.reason) == (VMState.STOPPED, "its VMM had ended")
        assert rig.vmms() == [] and [lease.kind for lease in engine.store.leases()] == ["directory"]


@pytest.mark.anyio
async def test_a_guest_that_refuses_to_power_off_is_killed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuses(self: AgentClient, *, grace_s: float) -> None:
        raise InvalidArgument("says the guest")

    async with rig.running() as engine:
        vm = await make(engine, rig.config, start=True)
        monkeypatch.setattr(AgentClient, "poweroff", refuses)
        assert (await stop_vm(engine, vm.vm_id, timeout_s=0.2)).reason.startswith("killed")


def on_a_full_disk(engine: Engine) -> AbstractContextManager[object]:
    """In the block the database cannot be written."""
    return patch.object(engine.store, "_transaction", side_effect=DiskFull("no space left"))


@pytest.mark.anyio
async def test_on_a_full_disk_a_vm_can_be_paused_resumed_stopped_and_deleted(rig: Rig) -> None:
    async with rig.running() as engine:
        vm = await make(engine, rig.config, start=True)
        with on_a_full_disk(engine):
            assert (await pause_vm(engine, vm.vm_id)).state is VMState.PAUSED
            assert (await resume_vm(engine, vm.vm_id)).state is VMState.RUNNING
            assert (await stop_vm(engine, vm.vm_id)).state is VMState.STOPPED
            assert rig.vmms() == []
            with pytest.raises(DiskFull):
                await start_vm(engine, vm.vm_id)
            assert engine.store.get_vm(vm.vm_id).state is VMState.ERROR
            await delete_vm(engine, vm.vm_id)
            with pytest.raises(DiskFull):
                await make(engine, rig.config)
            assert list_vms(engine) == []
        engine.store.flush()
        nothing_left(engine, rig)
        await make(engine, rig.config, start=True)


@pytest.mark.anyio
async def test_a_vmm_that_ends_on_a_full_disk_is_settled_without_anybodys_help(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("squib.core.engine._FLUSH_S", 0.01)

    async with rig.running() as engine:
        vm = await make(engine, rig.config, start=True)
        with on_a_full_disk(engine):
            os.kill(rig.vmms()[0], signal.SIGKILL)
            await until(engine, vm.vm_id, VMState.ERROR)
        with contextlib.closing(sqlite3.connect(rig.home.database)) as db:
            async with asyncio.timeout(5):
                while db.execute("SELECT state FROM vms").fetchall() != [("error",)]:
                    await asyncio.sleep(0.01)


@pytest.mark.anyio
async def test_a_delete_does_not_wait_for_a_stop_of_a_vmm_that_hangs(rig: Rig) -> None:
    async with rig.running() as engine:
        vm = await make(engine, rig.config, start=True)
        os.kill(rig.vmms()[0], signal.SIGSTOP)
        stopping = asyncio.create_task(stop_vm(engine, vm.vm_id, timeout_s=600))
        await until(engine, vm.vm_id, VMState.STOPPING)
        async with asyncio.timeout(5):
            await delete_vm(engine, vm.vm_id)
            with pytest.raises(NotFound):
                await stopping
        nothing_left(engine, rig)


@pytest.mark.anyio
async def test_a_stop_with_a_shorter_timeout_does_not_wait_for_a_longer_one(rig: Rig) -> None:
    async with rig.running() as engine:
        rig.driver.behaviour = "--deaf"
        vm = await make(engine, rig.config, start=True)
        longer = asyncio.create_task(stop_vm(engine, vm.vm_id, timeout_s=600))
        await until(engine, vm.vm_id, VMState.STOPPING)
        async with asyncio.timeout(5):
            stopped = await stop_vm(engine, vm.vm_id, timeout_s=0.1)
            assert (await longer) == stopped
        assert stopped.reason == "killed: the guest did not power off within 0.1 s"


@pytest.mark.anyio
async def test_a_delete_at_the_moment_at_which_a_create_is_listed_ends_it(rig: Rig) -> None:
    async with rig.running() as engine:
        rig.driver.behaviour = "--hang"
        for _ in range(5):
            creating = asyncio.create_task(make(engine, rig.config, start=True, vm_id="one"))
            async with asyncio.timeout(5):
                while not list_vms(engine):
                    await asyncio.sleep(0)
                await delete_vm(engine, "one")
                with pytest.raises(Superseded, match="the create of VM one was superseded by a delete"):
                    await creating
            nothing_left(engine, rig)


@pytest.mark.anyio
async def test_a_pause_whose_outcome_is_unknown_is_settled_by_asking_the_vmm(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    pause = FakeMachine.pause

    async def pause_late(self: FakeMachine) -> None:
        await pause(self)
        raise ToolFailed("QEMU did not respond to stop within 10 s")

    async with rig.running() as engine:
        vm = await make(engine, rig.config, start=True)
        with monkeypatch.context() as patched, pytest.raises(ToolFailed):
            patched.setattr(FakeMachine, "pause", pause_late)
            await pause_vm(engine, vm.vm_id)
        await until(engine, vm.vm_id, VMState.PAUSED)
        await resume_vm(engine, vm.vm_id)


@pytest.mark.anyio
async def test_ten_clients_of_one_id_meet_no_fault_and_leave_nothing(rig: Rig) -> None:
    """Bounded: 150 random verbs on one VM from ten tasks at once."""
    random_verbs = random.Random(7)

    async def client(engine: Engine) -> None:
        for _ in range(15):
            verb = random_verbs.choice((make, start_vm, stop_vm, pause_vm, resume_vm, delete_vm))
            with contextlib.suppress(Conflict, NotFound):
                if verb is make:
                    await make(engine, rig.config, vm_id="one")
                else:
                    await verb(engine, "one")  # type: ignore[operator]

    async with rig.running() as engine:
        await asyncio.gather(*(client(engine) for _ in range(10)))
        with contextlib.suppress(NotFound):
            await delete_vm(engine, "one")
        nothing_left(engine, rig)


@pytest.mark.anyio
async def test_a_vm_whose_record_is_damaged_is_listed_and_can_only_be_removed(rig: Rig) -> None:
    async with rig.running() as engine:
        await make(engine, rig.config, name="good", start=True)
        await make(engine, rig.config, name="bad")
        engine.store._db.execute("UPDATE vms SET spec = 'x' WHERE name = 'bad'")
        assert {vm.name: vm.state for vm in list_vms(engine)} == {"good": VMState.RUNNING, "bad": VMState.ERROR}
        bad = get_vm(engine, "bad")
        advice = f"its database record is damaged; to delete the VM: squib rm {bad.vm_id}"
        assert bad.reason.startswith(f"{advice} (spec is not valid JSON: ")
        for verb in (start_vm, stop_vm, pause_vm, resume_vm):
            with pytest.raises(RecordCorrupt):
                await verb(engine, "bad")
        await delete_vm(engine, "bad")
        assert [vm.name for vm in list_vms(engine)] == ["good"]
        assert len(list(rig.home.vms.iterdir())) == 1
