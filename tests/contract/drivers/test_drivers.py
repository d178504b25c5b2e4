"""What every driver does: launch, connect, pause, resume, end, detach, adopt, and leave nothing behind."""

import asyncio
import contextlib
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from squib.drivers.base import ExitKind, FreshMemory, Nic, SavedMemory
from squib.errors import BootFailed, Unsupported, WrongState
from squib.guest.agent import AgentClient
from squib.host import memory
from squib.host.files import OwnedFd
from squib.models import ExecRequest
from squib.protocol.frames import CommandEnd, FrameDecoder, FrameKind
from tests.contract.drivers.implementations import BOOT_TIMEOUT_S, Subject, agent_of, broken, subject

pytestmark = pytest.mark.anyio


async def run(agent: AgentClient, *argv: str) -> int | None:
    """Run a command in the guest; return its exit code."""
    async with await agent.exec(ExecRequest(argv=list(argv))) as response:
        frames = list(FrameDecoder().feed(await response.read()))
    [end] = [CommandEnd.of(frame.json()) for frame in frames if frame.kind is FrameKind.EXIT]
    return end.exit_code


def skip_unless_it_can_pause(machine: Subject) -> None:
    """Skip the test on a driver without this capability."""
    if not machine.driver.capabilities.pause:
        pytest.skip(f"this {machine.driver.name} cannot pause")


async def test_a_machine_answers_runs_commands_and_powers_off(machine: Subject) -> None:
    spawned: list[int] = []
    vmm = await machine.launch(on_spawned=spawned.append)
    assert spawned == [vmm.pid] and vmm.pid in machine.processes()
    async with agent_of(vmm) as agent:
        assert await run(agent, "true") == 0
        await agent.poweroff(grace_s=0.2)
        async with asyncio.timeout(BOOT_TIMEOUT_S):
            reason = await vmm.wait()
    assert reason.kind is ExitKind.POWERED_OFF
    assert await vmm.wait() == reason
    assert (machine.processes(), machine.sockets()) == ([], [])


async def test_what_a_driver_keeps_on_disk_is_in_its_own_directory(machine: Subject) -> None:
    vmm = await machine.launch()
    outside = sorted(path.name for path in machine.folder.parent.iterdir())
    assert outside == sorted(["overlay.ext4", "vmm.lock", machine.folder.name])
    assert machine.driver.console_log(machine.folder).is_relative_to(machine.folder)
    await vmm.kill()


async def test_a_paused_machine_stands_still_and_goes_on(machine: Subject) -> None:
    skip_unless_it_can_pause(machine)
    vmm = await machine.launch()
    async with agent_of(vmm) as agent:
        assert not await vmm.is_paused()
        for _ in range(2):
            await vmm.pause()
            assert await vmm.is_paused()
        command = asyncio.create_task(run(agent, "true"))
        done, _ = await asyncio.wait({command}, timeout=0.5)
        assert not done
        for _ in range(2):
            await vmm.resume()
            assert not await vmm.is_paused()
        assert await command == 0
    await vmm.kill()


def skip_unless_it_can_save(machine: Subject) -> None:
    """Skip the test on a driver without this capability."""
    if not machine.driver.capabilities.save:
        pytest.skip(f"this {machine.driver.name} cannot save")


@pytest.mark.parametrize(("mem_size_mib", "generations"), [(128, 3), (4096, 2)])
async def test_a_saved_machine_runs_again_from_there_and_so_do_its_clones(
    machine: Subject, tmp_path: Path, mem_size_mib: int, generations: int
) -> None:
    skip_unless_it_can_save(machine)
    spec = replace(machine.spec, memory=FreshMemory(mem_size_mib))
    for generation in range(generations):
        vmm = await machine.launch(spec)
        if isinstance(spec.memory, SavedMemory):
            assert await vmm.is_paused()
            await vmm.resume()
        async with agent_of(vmm) as agent:
            assert await run(agent, "true") == 0
            await vmm.pause()
            names = (tmp_path / f"{name}-{generation}" for name in ("memory", "devices"))
            saved = SavedMemory(spec.memory.size_mib, *names)
            complete = await vmm.save(saved.memory, saved.devices, size_mib=saved.size_mib)
            assert await vmm.is_paused()
            await complete()
            if generation:  # a saved machine goes on too; the connection to its agent may have ended
                await vmm.resume()
                await agent.thaw()
                assert await run(agent, "true") == 0
        await vmm.kill()
        spec = replace(spec, memory=saved)
    fingerprint = await machine.driver.fingerprint(spec)
    assert fingerprint != await machine.driver.fingerprint(replace(spec, vcpu_count=2))
    assert fingerprint == await machine.driver.fingerprint(replace(spec, vm_id="other"))


async def test_a_loaded_machine_that_has_not_run_yet_is_adopted_and_runs(machine: Subject, tmp_path: Path) -> None:
    skip_unless_it_can_save(machine)
    vmm = await machine.launch()
    async with agent_of(vmm):
        pass
    await vmm.pause()
    saved = SavedMemory(machine.spec.memory.size_mib, tmp_path / "memory", tmp_path / "devices")
    await (await vmm.save(saved.memory, saved.devices, size_mib=saved.size_mib))()
    await vmm.kill()
    first = await machine.launch(replace(machine.spec, memory=saved))
    saved.memory.unlink()
    saved.devices.unlink()
    await first.detach()
    second = await machine.adopt()
    assert second is not None and second.pid == first.pid
    assert await second.is_paused()
    await second.resume()
    async with agent_of(second) as agent:
        assert await run(agent, "true") == 0
    await second.pause()  # what it runs from has no name any more, and can be saved all the same
    again = SavedMemory(saved.size_mib, tmp_path / "memory-2", tmp_path / "devices-2")
    await (await second.save(again.memory, again.devices, size_mib=again.size_mib))()
    await second.kill()
    third = await machine.launch(replace(machine.spec, memory=again))
    await third.resume()
    async with agent_of(third) as agent:
        assert await run(agent, "true") == 0
    await third.kill()


async def test_killing_ends_a_machine_at_once_and_twice(machine: Subject) -> None:
    vmm = await machine.launch()
    await vmm.kill()
    await vmm.kill()
    assert (await vmm.wait()).kind is ExitKind.KILLED
    assert (machine.processes(), machine.sockets()) == ([], [])


async def test_a_paused_machine_can_be_killed(machine: Subject) -> None:
    skip_unless_it_can_pause(machine)
    vmm = await machine.launch()
    await vmm.pause()
    await vmm.kill()
    assert machine.processes() == []


async def test_the_end_of_a_vmm_that_somebody_killed_is_noticed(machine: Subject) -> None:
    vmm = await machine.launch()
    os.kill(vmm.pid, signal.SIGKILL)
    async with asyncio.timeout(5):
        assert (await vmm.wait()).kind is ExitKind.KILLED
    assert (machine.processes(), machine.sockets()) == ([], [])


async def test_a_machine_outlives_its_engine_and_is_adopted(machine: Subject) -> None:
    first = await machine.launch()
    async with agent_of(first):
        pass
    await first.detach()
    assert first.pid in machine.processes()
    second = await machine.adopt()
    assert second is not None and second.pid == first.pid
    async with agent_of(second) as agent:
        assert await run(agent, "true") == 0
    await second.kill()
    assert await machine.adopt() is None
    assert machine.sockets() == []


async def test_there_is_nothing_to_adopt_where_nothing_was_launched(machine: Subject) -> None:
    assert await machine.adopt() is None


async def test_a_machine_that_was_paused_is_adopted_and_goes_on(machine: Subject) -> None:
    skip_unless_it_can_pause(machine)
    first = await machine.launch()
    async with agent_of(first):
        await first.pause()
        await first.detach()
    second = await machine.adopt()
    assert second is not None and await second.is_paused()
    await second.resume()
    async with agent_of(second) as agent:
        assert await run(agent, "true") == 0
    await second.kill()


async def test_a_new_connection_to_the_agent_replaces_the_old_one(machine: Subject) -> None:
    vmm = await machine.launch()
    async with agent_of(vmm) as agent:
        assert await run(agent, "true") == 0
    async with agent_of(vmm) as agent:
        assert await run(agent, "true") == 0
    await vmm.kill()


async def test_a_vm_has_one_vmm_at_a_time(machine: Subject) -> None:
    vmm = await machine.launch()
    with pytest.raises(WrongState):
        await machine.launch()
    async with agent_of(vmm) as agent:  # the first is as it was
        assert await run(agent, "true") == 0
    await vmm.kill()


async def test_a_caller_that_cannot_record_the_process_ends_it(machine: Subject) -> None:
    def fails(pid: int) -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        await machine.launch(on_spawned=fails)
    assert (machine.processes(), machine.sockets()) == ([], [])


async def test_a_cancelled_launch_leaves_nothing(machine: Subject) -> None:
    spawned = asyncio.Event()
    task = asyncio.create_task(machine.launch(on_spawned=lambda pid: spawned.set()))
    await spawned.wait()
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():  # it was launched already
        await task.result().kill()
    assert (machine.processes(), machine.sockets()) == ([], [])


async def test_a_vmm_that_ends_at_once_is_a_failed_boot_or_a_machine_that_has_ended(
    machine: Subject, tmp_path: Path
) -> None:
    try:
        vmm = await machine.launch(broken(machine, tmp_path))
    except BootFailed:
        pass
    else:
        async with asyncio.timeout(10):
            assert (await vmm.wait()).kind is ExitKind.FAILED
    assert (machine.processes(), machine.sockets()) == ([], [])


async def test_a_driver_refuses_what_it_cannot_do(machine: Subject, tmp_path: Path) -> None:
    able = machine.driver.capabilities
    refused = []
    if not able.save:
        refused.append(replace(machine.spec, memory=SavedMemory(128, tmp_path / "memory", tmp_path / "devices")))
    if not able.nics:
        refused.append(replace(machine.spec, nics=(Nic("tap0", "02:00:00:00:00:01"),)))
    if not able.nested:
        refused.append(replace(machine.spec, nested=True))
    for spec in refused:
        with pytest.raises(Unsupported, match=machine.driver.name):
            await machine.launch(spec)
    assert machine.processes() == []


async def test_a_driver_describes_itself(machine: Subject) -> None:
    driver = machine.driver
    assert driver.name and driver.accelerator
    assert driver.memory_overhead_mib(machine.spec) > 0
    assert all(check.name for check in await driver.checks())


def maps_memory(pid: int) -> bool:
    """Whether a process has mapped a guest's memory."""
    with contextlib.suppress(OSError):  # it has ended
        return "memfd:squib-memory" in Path(f"/proc/{pid}/maps").read_text()
    return False


@pytest.mark.vm
async def test_qemu_starts_while_its_memory_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It maps the memory before there is anything in it, and writes nothing there."""
    fill, has_mapped = memory.fill, threading.Event()

    def late(memfd: OwnedFd, path: Path) -> None:
        while not any(map(maps_memory, qemu.processes())):
            time.sleep(0.01)
        has_mapped.set()
        fill(memfd, path)

    monkeypatch.setattr(memory, "fill", late)
    async with subject("qemu", tmp_path) as qemu:
        vmm = await qemu.launch()
        async with agent_of(vmm) as agent:
            assert await run(agent, "true") == 0
        await vmm.pause()
        saved = SavedMemory(qemu.spec.memory.size_mib, tmp_path / "memory", tmp_path / "devices")
        await (await vmm.save(saved.memory, saved.devices, size_mib=saved.size_mib))()
        await vmm.kill()
        clone = await qemu.launch(replace(qemu.spec, memory=saved))
        assert has_mapped.is_set()
        await clone.resume()
        async with agent_of(clone) as agent:
            assert await run(agent, "true") == 0
        await clone.kill()
