"""The VM-wide environment: kept with the VM, and told to the guest before the next command."""

import asyncio
import os
import signal

import pytest

from squib.core.engine import Engine
from squib.core.guestio import exec
from squib.core.guestio.env import change_env, get_env
from squib.core.lifecycle.create import create_vm
from squib.core.lifecycle.pause import pause_vm, resume_vm
from squib.core.lifecycle.start import start_vm
from squib.core.lifecycle.stop import stop_vm
from squib.errors import AgentTimeout, InvalidArgument
from squib.models import ExecRequest
from squib.protocol.frames import FrameDecoder, FrameKind
from tests.fakes.engine import Rig

pytestmark = pytest.mark.anyio


async def running(engine: Engine, rig: Rig) -> str:
    config = rig.config.model_copy(update={"env_vars": {"FIRST": "1"}})
    return (await create_vm(engine, config, start=True, on_progress=lambda _: None)).vm_id


async def seen(engine: Engine, vm_id: str) -> dict[str, str]:
    """The environment in which the guest starts a command."""
    decoder = FrameDecoder()
    command = await exec.start_exec(engine, vm_id, ExecRequest(argv=["env"]))
    frames = [frame async for chunk in exec.stream(command) for frame in decoder.feed(chunk)]
    return next(frame.json() for frame in frames if frame.kind is FrameKind.STDOUT)


async def test_a_change_holds_for_the_next_command_and_after_a_restart(rig: Rig) -> None:
    async with asyncio.timeout(30), rig.engine() as engine:
        vm_id = await running(engine, rig)
        assert await seen(engine, vm_id) == {"FIRST": "1"}
        assert await change_env(engine, vm_id, set={"A": "x", "B": "y"}, unset=["FIRST", "NEVER_SET"]) == {
            "A": "x",
            "B": "y",
        }
        assert await seen(engine, vm_id) == {"A": "x", "B": "y"}
        await stop_vm(engine, vm_id)
        await change_env(engine, vm_id, set={}, unset=["B"])
        await start_vm(engine, vm_id)
        assert await seen(engine, vm_id) == get_env(engine, vm_id) == {"A": "x"}


async def test_a_paused_vm_gets_it_when_it_goes_on(rig: Rig) -> None:
    async with asyncio.timeout(30), rig.engine() as engine:
        vm_id = await running(engine, rig)
        await pause_vm(engine, vm_id)
        await change_env(engine, vm_id, set={"FIRST": "2"}, unset=[])
        await resume_vm(engine, vm_id)
        assert await seen(engine, vm_id) == {"FIRST": "2"}


async def test_a_later_engine_tells_the_guest_what_the_one_before_it_could_not(rig: Rig) -> None:
    async with rig.engine() as engine:
        vm_id = await running(engine, rig)
        await change_env(engine, vm_id, set={"FIRST": "2"}, unset=[])
    async with rig.engine() as engine:
        assert await seen(engine, vm_id) == {"FIRST": "2"}


async def test_a_guest_that_hangs_is_told_later(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exec, "_START_TIMEOUT_S", 0.3)

    async with asyncio.timeout(30), rig.engine() as engine:
        vm_id = await running(engine, rig)
        (pid,) = rig.vmms()
        os.kill(pid, signal.SIGSTOP)
        try:
            await change_env(engine, vm_id, set={"FIRST": "2"}, unset=[])
            with pytest.raises(AgentTimeout):
                await seen(engine, vm_id)
        finally:
            os.kill(pid, signal.SIGCONT)
        monkeypatch.undo()
        assert await seen(engine, vm_id) == {"FIRST": "2"}


@pytest.mark.parametrize(
    ("set", "unset", "message"),
    [
        ({"A": "secret"}, ["A"], "'A' is both"),
        ({"A": "secret" * 30_000}, [], "variable A has 180001 bytes"),
        ({f"A{n}": "secret" * 20_000 for n in range(9)}, [], "in total"),
    ],
)
async def test_what_cannot_be_is_refused_and_changes_nothing(
    rig: Rig, set: dict[str, str], unset: list[str], message: str
) -> None:
    async with asyncio.timeout(30), rig.engine() as engine:
        vm = await create_vm(engine, rig.config, start=False, on_progress=lambda _: None)
        await change_env(engine, vm.vm_id, set={"KEPT": "1"}, unset=[])
        with pytest.raises(InvalidArgument, match=message) as caught:
            await change_env(engine, vm.vm_id, set=set, unset=unset)
        assert "secret" not in str(caught.value)
        assert get_env(engine, vm.vm_id) == {"KEPT": "1"}
