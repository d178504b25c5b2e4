"""Commands in a guest that hangs: each fails in bounded time."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from squib.core.engine import Engine
from squib.core.guestio import exec, stall
from squib.core.lifecycle.create import create_vm
from squib.core.lifecycle.pause import pause_vm, resume_vm
from squib.core.lifecycle.stop import stop_vm
from squib.errors import AgentTimeout
from squib.models import ExecRequest
from squib.protocol.frames import Frame, FrameDecoder, FrameKind
from tests.fakes.engine import Rig

pytestmark = [pytest.mark.anyio, pytest.mark.slow]  # they wait


@asynccontextmanager
async def running_vm(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Engine, str, int]]:
    """An engine, the ID of a running VM, and the pid of its VMM."""
    monkeypatch.setattr(exec, "_START_TIMEOUT_S", 0.3)
    monkeypatch.setattr(exec, "_TIMEOUT_GRACE_S", 0.1)
    monkeypatch.setattr(stall, "STALL_TIMEOUT_S", 0.5)
    monkeypatch.setattr(stall, "_POLL_S", 0.05)
    async with asyncio.timeout(30), rig.engine() as engine:
        vm = await create_vm(engine, rig.config, start=True, on_progress=lambda _: None)
        pid = rig.vmms()[0]
        try:
            async with asyncio.timeout(10):
                yield engine, vm.vm_id, pid
        finally:
            os.kill(pid, signal.SIGCONT)
            await stop_vm(engine, vm.vm_id)


async def last_frame(command: exec.Command) -> Frame:
    decoder = FrameDecoder()
    return [frame async for chunk in exec.stream(command) for frame in decoder.feed(chunk)][-1]


def error_of(frame: Frame) -> str:
    assert frame.kind is FrameKind.ERROR
    return str(frame.json()["message"])


async def test_a_command_that_a_hung_guest_does_not_start(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_vm(rig, monkeypatch) as (engine, vm_id, pid):
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(AgentTimeout, match="did not start the command"):
            await exec.start_exec(engine, vm_id, ExecRequest(argv=["true"]))


async def test_a_command_whose_timeout_a_hung_guest_does_not_keep(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_vm(rig, monkeypatch) as (engine, vm_id, pid):
        command = await exec.start_exec(engine, vm_id, ExecRequest(argv=["sleep"], timeout_s=0.2))
        os.kill(pid, signal.SIGSTOP)
        assert "did not end the command within" in error_of(await last_frame(command))


async def test_a_command_of_a_guest_that_stalls(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_vm(rig, monkeypatch) as (engine, vm_id, pid):
        command = await exec.start_exec(engine, vm_id, ExecRequest(argv=["sleep"]))
        os.kill(pid, signal.SIGSTOP)
        assert "made no progress" in error_of(await last_frame(command))


async def test_a_paused_guest_does_not_stall_and_the_timeout_waits(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_vm(rig, monkeypatch) as (engine, vm_id, _):
        command = await exec.start_exec(engine, vm_id, ExecRequest(argv=["sleep"], timeout_s=0.2))
        end = asyncio.create_task(last_frame(command))
        await pause_vm(engine, vm_id)
        await asyncio.sleep(0.8)
        assert not end.done()
        await resume_vm(engine, vm_id)
        assert (await end).json()["timed_out"] is True


async def test_a_reader_that_stops_for_long_loses_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_vm(rig, monkeypatch) as (engine, vm_id, _):
        command = await exec.start_exec(engine, vm_id, ExecRequest(argv=["sleep"], timeout_s=0.2))
        chunks = exec.stream(command)
        decoder = FrameDecoder()
        frames = list(decoder.feed(await anext(chunks)))
        await asyncio.sleep(0.8)
        frames += [frame async for chunk in chunks for frame in decoder.feed(chunk)]
        assert frames[-1].kind is FrameKind.EXIT
