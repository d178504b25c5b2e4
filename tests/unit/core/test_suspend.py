"""Suspend: the memory goes to the disk, a start goes on from it, and a fault loses neither."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from squib.core.engine import Engine
from squib.core.lifecycle.create import create_vm
from squib.core.lifecycle.delete import delete_vm
from squib.core.lifecycle.pause import pause_vm, resume_vm
from squib.core.lifecycle.start import start_vm
from squib.core.lifecycle.stop import stop_vm
from squib.core.lifecycle.suspend import suspend_vm
from squib.core.snapshots import frozen, saved
from squib.core.snapshots.snapshot import create_snapshot
from squib.drivers.base import Capabilities, SavedMemory
from squib.errors import (
    AgentError,
    AgentTimeout,
    BootFailed,
    BootTimeout,
    DiskFull,
    GuestFailed,
    HostError,
    Unsupported,
    WrongState,
)
from squib.guest.agent import AgentClient
from squib.host import files
from squib.models import VMState
from squib.store.records import VMRecord
from tests.fakes.driver import FakeDriver, FakeMachine
from tests.fakes.engine import Rig

pytestmark = pytest.mark.anyio


async def running(engine: Engine, rig: Rig, **fields: object) -> VMRecord:
    config = rig.config.model_copy(update={"name": "web", "cold": True} | fields)
    return await create_vm(engine, config, start=True, on_progress=lambda _: None, boot_timeout_s=5)


def goes_on(rig: Rig) -> bool:
    """Whether the VM that was launched last runs from a saved state."""
    return isinstance(rig.driver.launched[-1].memory, SavedMemory)


async def until_served(engine: Engine, vm: VMRecord) -> None:
    """Wait until the guest is not frozen."""
    async with asyncio.timeout(5):
        await engine.running[vm.vm_id].agent.processes()


async def test_a_suspended_vm_has_no_vmm_and_goes_on_when_it_starts(rig: Rig) -> None:
    async with rig.running() as engine:
        vm = await running(engine, rig)
        suspended = await suspend_vm(engine, "web")
        assert (suspended.state, suspended.pid, rig.vmms()) == (VMState.SUSPENDED, None, [])
        assert not engine.needed  # no engine has to stay for it
        assert await suspend_vm(engine, "web") == suspended
        assert (await stop_vm(engine, "web")) == suspended
        paths = engine.home.vm(vm.vm_id)
        assert sorted(path.name for path in paths.saved.root.iterdir()) == ["devices", "manifest.json", "memory"]
        again = await start_vm(engine, "web")
        assert (again.state, again.vm_id, goes_on(rig)) == (VMState.RUNNING, vm.vm_id, True)
        await until_served(engine, again)
        assert not paths.saved.root.exists() and not paths.frozen_mark.exists()
        await delete_vm(engine, "web")
        assert list(rig.home.vms.iterdir()) == []


async def test_the_next_engine_lets_it_go_on(rig: Rig) -> None:
    async with rig.engine() as engine:
        await running(engine, rig)
        await suspend_vm(engine, "web")
    async with rig.running() as engine:
        assert engine.store.get_vm("web").state is VMState.SUSPENDED
        assert (await start_vm(engine, "web")).state is VMState.RUNNING
        assert goes_on(rig)


async def test_a_paused_vm_can_be_suspended(rig: Rig) -> None:
    async with rig.running() as engine:
        await running(engine, rig)
        await pause_vm(engine, "web")
        assert (await suspend_vm(engine, "web")).state is VMState.SUSPENDED
        assert (await start_vm(engine, "web")).state is VMState.RUNNING


async def test_a_vm_that_does_not_run_cannot_be_suspended(rig: Rig) -> None:
    async with rig.running() as engine:
        await running(engine, rig)
        await stop_vm(engine, "web")
        with pytest.raises(WrongState, match="cannot suspend it"):
            await suspend_vm(engine, "web")


async def test_a_driver_that_cannot_save_says_so_and_the_vm_goes_on(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig.running() as engine:
        vm = await running(engine, rig)
        able = Capabilities(pause=True, no_save="it is a fake", save_hint="squib install fake")
        monkeypatch.setattr(FakeDriver, "capabilities", property(lambda _: able))
        with pytest.raises(Unsupported, match="cannot save the memory of VM web: it is a fake") as raised:
            await suspend_vm(engine, "web")
        assert raised.value.hint == "squib install fake; squib snapshot create --disk-only web saves its disk"
        await until_served(engine, vm)


@pytest.mark.parametrize("step", ["freeze", "pause", "save", "complete", "commit"])
@pytest.mark.parametrize("paused", [False, True])
async def test_after_an_error_the_vm_is_as_before(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, step: str, paused: bool
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise DiskFull("the disk is full")

    async def save(self: FakeMachine, *_: object, **__: object) -> object:
        return fail

    def refuse(*_: object, **__: object) -> None:
        raise DiskFull("the disk is full")

    async with rig.running() as engine:
        vm = await running(engine, rig)
        if paused:
            await pause_vm(engine, "web")
        with monkeypatch.context() as patch:
            match step:
                case "freeze":
                    patch.setattr(AgentClient, "freeze", fail)
                case "pause" if not paused:
                    patch.setattr(FakeMachine, "pause", fail)
                case "save":
                    patch.setattr(FakeMachine, "save", fail)
                case "complete":
                    patch.setattr(FakeMachine, "save", save)
                case _:
                    patch.setattr(files, "write_atomic", refuse)
            with pytest.raises(DiskFull):
                await suspend_vm(engine, "web")
        assert engine.store.get_vm("web").state is (VMState.PAUSED if paused else VMState.RUNNING)
        if paused:
            await resume_vm(engine, "web")
        await until_served(engine, vm)
        assert (await suspend_vm(engine, "web")).state is VMState.SUSPENDED


async def test_a_guest_that_does_not_thaw_is_asked_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    thaw, refused = AgentClient.thaw, 0

    async def refuse_twice(self: AgentClient) -> None:
        nonlocal refused
        if refused < 2:
            refused += 1
            raise GuestFailed("not now")
        await thaw(self)

    async def fail(*_: object, **__: object) -> None:
        raise DiskFull("the disk is full")

    monkeypatch.setattr("squib.core.snapshots.frozen._WAKE_AGAIN_S", 0.01)
    monkeypatch.setattr(AgentClient, "thaw", refuse_twice)
    monkeypatch.setattr(FakeMachine, "save", fail)
    async with rig.running() as engine:
        vm = await running(engine, rig)
        with pytest.raises(DiskFull):
            await suspend_vm(engine, "web")
        await until_served(engine, vm)
        assert refused == 2


async def test_an_engine_that_finds_a_frozen_vm_lets_it_go_on(rig: Rig) -> None:
    async with rig.engine() as engine:
        vm = await running(engine, rig)
        machine = engine.running[vm.vm_id]
        engine.home.vm(vm.vm_id).frozen_mark.touch()  # as an engine that is killed while it saves
        await machine.agent.freeze(sync=False)
        await machine.machine.pause()
    async with rig.running() as engine:
        async with asyncio.timeout(5):
            while engine.home.vm(vm.vm_id).frozen_mark.exists():
                await asyncio.sleep(0.01)
        await until_served(engine, vm)


async def test_a_suspended_vm_that_fits_no_more_says_why_and_boots_cold(rig: Rig) -> None:
    async with rig.running() as engine:
        await running(engine, rig)
        await suspend_vm(engine, "web")
        rig.driver.release = "fake 2.0"
        with pytest.raises(Unsupported, match=r"its VMM was fake 1.0, here it is fake 2.0") as caught:
            await start_vm(engine, "web")
        assert "squib start --cold web" in caught.value.hint
        assert engine.store.get_vm("web").state is VMState.SUSPENDED
        assert (await start_vm(engine, "web", cold=True)).state is VMState.RUNNING
        assert not goes_on(rig)


async def test_a_start_that_fails_before_the_guest_goes_on_loses_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise BootFailed("QEMU ended at once")

    async with rig.running() as engine:
        await running(engine, rig)
        await suspend_vm(engine, "web")
        with monkeypatch.context() as patch:
            patch.setattr(FakeDriver, "launch", refuse)
            with pytest.raises(BootFailed):
                await start_vm(engine, "web")
        failed = engine.store.get_vm("web")
        assert (failed.state, failed.reason) == (VMState.SUSPENDED, "QEMU ended at once")
        assert (await start_vm(engine, "web")).state is VMState.RUNNING
        assert goes_on(rig)


async def test_a_saved_state_that_cannot_be_read_is_an_error_and_kept(rig: Rig) -> None:
    async with rig.running() as engine:
        vm = await running(engine, rig)
        await suspend_vm(engine, "web")
        engine.home.vm(vm.vm_id).saved.manifest.write_text("{")
        with pytest.raises(HostError, match="cannot be read"):
            await start_vm(engine, "web")
        assert engine.home.vm(vm.vm_id).saved.memory.exists()
        assert (await start_vm(engine, "web", cold=True)).state is VMState.RUNNING


async def test_a_commit_that_was_interrupted_is_finished(rig: Rig) -> None:
    async with rig.engine() as engine:
        vm = await running(engine, rig)
        await suspend_vm(engine, "web")
        paths = engine.home.vm(vm.vm_id)
        paths.saved.root.rename(paths.saving.root)  # complete, but without its name
        assert engine.store.change_state(vm.vm_id, expected={VMState.SUSPENDED}, to=VMState.RUNNING)
    async with rig.running() as engine:
        assert engine.store.get_vm("web").state is VMState.SUSPENDED
        assert saved.find(engine.home.vm(vm.vm_id)) is not None
        assert (await start_vm(engine, "web")).state is VMState.RUNNING


async def test_a_vmm_that_ends_while_it_is_saved_is_an_error_and_no_state_is_left(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(self: FakeMachine, *_: object, **__: object) -> None:
        os.kill(self.pid, signal.SIGCONT)
        os.kill(self.pid, signal.SIGKILL)
        await self.wait()
        raise HostError("the process has ended")

    monkeypatch.setattr(FakeMachine, "save", die)
    async with rig.running() as engine:
        vm = await running(engine, rig)
        with pytest.raises((HostError, AgentError)):
            await suspend_vm(engine, "web")
        async with asyncio.timeout(5):
            while engine.store.get_vm("web").state is not VMState.ERROR:
                await asyncio.sleep(0.01)
        assert saved.find(engine.home.vm(vm.vm_id)) is None
        monkeypatch.undo()
        assert (await start_vm(engine, "web")).state is VMState.RUNNING


async def test_a_vm_that_goes_on_is_not_killed_because_its_agent_is_slow(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has in its memory is nowhere else."""
    monkeypatch.setattr("squib.core.snapshots.frozen._WAKE_AGAIN_S", 0.01)
    async with rig.running() as engine:
        vm = await running(engine, rig)
        await suspend_vm(engine, "web")
        with monkeypatch.context() as patch:
            patch.setattr(AgentClient, "shake_hands", never)
            with pytest.raises(BootTimeout) as caught:
                await start_vm(engine, "web", boot_timeout_s=0.2)
            assert "the VM is running" in caught.value.hint
            assert engine.store.get_vm("web").state is VMState.RUNNING
        async with asyncio.timeout(10):
            while engine.home.vm(vm.vm_id).frozen_mark.exists():
                await asyncio.sleep(0.01)
        await until_served(engine, vm)
        assert len(rig.vmms()) == 1


async def never(self: AgentClient, *, timeout_s: float, retry_s: float = 0) -> None:
    await asyncio.sleep(min(timeout_s, 0.2))
    raise AgentTimeout("the guest agent did not respond")


async def test_a_stop_of_a_vm_that_is_going_on_lets_its_commands_end(rig: Rig) -> None:
    async with rig.running() as engine:
        vm = await running(engine, rig)
        await create_snapshot(engine, "web", go_on=False)
        assert engine.home.vm(vm.vm_id).frozen_mark.exists()
        assert (await stop_vm(engine, "web", timeout_s=5)).reason == "stopped"


async def test_the_next_engine_adopts_a_vm_that_was_just_going_on(rig: Rig) -> None:
    async with rig.engine() as engine:
        vm = await running(engine, rig)
        await engine.running[vm.vm_id].agent.freeze(sync=False)
        frozen.mark(engine.home.vm(vm.vm_id), frozen.Needs.SETUP_OF_SAME_BOOT)
        assert engine.store.change_state(vm.vm_id, expected={VMState.RUNNING}, to=VMState.STARTING)
    async with rig.running() as engine:
        assert engine.store.get_vm("web").state is VMState.RUNNING
        await until_served(engine, vm)


async def test_a_vmm_that_was_upgraded_meanwhile_is_not_taken_for_the_one_that_runs(rig: Rig) -> None:
    async with rig.running() as engine:
        await running(engine, rig)
        rig.driver.release = "fake 2.0"  # the VM still runs with 1.0
        await suspend_vm(engine, "web")
        with pytest.raises(Unsupported, match=r"VMM was fake 1.0, here it is fake 2.0"):
            await start_vm(engine, "web")


async def test_a_guest_is_not_woken_while_it_is_saved(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    save, saving = FakeMachine.save, asyncio.Event()

    async def slow(self: FakeMachine, *args: Path, size_mib: int) -> object:
        saving.set()
        await asyncio.sleep(0.2)
        assert await self.is_paused()
        return await save(self, *args, size_mib=size_mib)

    monkeypatch.setattr(FakeMachine, "save", slow)
    async with rig.running() as engine:
        vm = await running(engine, rig)
        suspending = asyncio.create_task(suspend_vm(engine, "web"))
        await saving.wait()
        frozen.wake_later(engine, vm.vm_id, engine.running[vm.vm_id])
        assert (await suspending).state is VMState.SUSPENDED
