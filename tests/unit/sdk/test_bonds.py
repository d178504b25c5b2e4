"""A bound VM never outlives its program, however and whenever that ends."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import anyio
import pytest

from squib import VM, AsyncVM, EngineClient, VMState
from squib.core.engine import Engine
from squib.core.lifecycle import bonds
from squib.store.records import VMRecord
from tests.fakes.served import Served

ROUNDS = 60
WITHIN_S = 10.0

SYNC = """
import time
from squib import VM
with VM({options}):
    print("up", flush=True)
    time.sleep(60)
"""
ASYNC = """
import asyncio
from squib import AsyncVM
async def main():
    async with AsyncVM({options}):
        print("up", flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""
FORKED = """
import os, time
from squib import VM
with VM({options}):
    if os.fork() == 0:
        print(os.getpid(), flush=True)
    time.sleep(60)
"""
FORKED_IN_C = FORKED.replace("os.fork()", "__import__('ctypes').PyDLL(None).fork()")
BOUND = """
import time
from squib import VM
vm = VM({options}).start(bound=True)
print("up", flush=True)
{then}
"""
REGISTERED = """
from squib import VM
VM({options}, name="registered")
"""


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bonds, "GRACE_S", 1.0)


@pytest.fixture
def bound(served: Served, short_grace: None) -> Iterator[Served]:
    yield served
    for record in others(served):
        VM.from_id(record).delete()
    gc.collect()  # a connection that nobody has closed fails the test: ResourceWarning


def records(served: Served) -> list[VMRecord]:
    """The VMs but ``web``."""

    async def read(engine: Engine) -> list[VMRecord]:
        return [record for record in engine.store.list_vms() if record.name != "web"]

    return served.call(read)


def others(served: Served) -> list[str]:
    return [record.vm_id for record in records(served)]


def until(condition: Callable[[], bool], problem: Callable[[], object]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, problem()
        time.sleep(0.02)


def nothing_is_left(served: Served) -> None:
    until(lambda: others(served) == [] == served.rig.vmms(), lambda: (records(served), served.rig.vmms()))


def program(served: Served, script: str, **fields: str) -> subprocess.Popen[str]:
    config = served.rig.config
    options = f"kernel_path={config.kernel_path!r}, rootfs_path={config.rootfs_path!r}"
    return subprocess.Popen(
        [sys.executable, "-c", script.format(options=options, **fields)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def end(process: subprocess.Popen[str], number: int) -> None:
    process.send_signal(number)
    process.wait()
    assert process.stdout
    process.stdout.close()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("script", [SYNC, ASYNC])
def test_a_program_that_is_ended_at_any_moment_leaves_no_vm(bound: Served, script: str, number: int) -> None:
    """Before: 4 and 13 of 60 stayed after SIGKILL, 3 and 10 after Ctrl-C."""
    seconds = random.Random(7)
    for _ in range(ROUNDS // 4):
        running = [program(bound, script) for _ in range(4)]
        time.sleep(0.2)
        for process in running:
            time.sleep(seconds.random() / 4)
            end(process, number)
    nothing_is_left(bound)


@pytest.mark.parametrize("script", [FORKED, FORKED_IN_C], ids=["os.fork", "fork in C"])
def test_a_child_that_outlives_its_parent_does_not_keep_the_vm(bound: Served, script: str) -> None:
    process = program(bound, script)
    assert process.stdout
    child = int(process.stdout.readline())
    try:
        end(process, signal.SIGKILL)
        nothing_is_left(bound)
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("then", ["time.sleep(60)", "vm.close()", "pass"], ids=["kill", "close", "exit"])
def test_a_vm_that_is_bound_without_a_block_ends_with_its_program(bound: Served, then: str) -> None:
    process = program(bound, BOUND, then=then)
    assert process.stdout and process.stdout.readline() == "up\n"
    end(process, signal.SIGKILL) if "sleep" in then else process.communicate()
    nothing_is_left(bound)


def test_a_program_that_only_registers_a_vm_leaves_it_registered(bound: Served) -> None:
    program(bound, REGISTERED).communicate()
    assert [(record.name, record.bound) for record in records(bound)] == [("registered", False)]
    bound.call(lambda engine: bonds.client_left(engine, "registered"))
    assert VM.from_id("registered").status is VMState.CREATED


def test_a_vm_is_independent_of_its_program_from_its_first_use_on(bound: Served) -> None:
    vm = VM(bound.rig.config)
    assert [record.bound for record in records(bound)] == [True]
    assert [record.vm_id for record in records(bound)] == [vm.vm_id]
    assert [record.bound for record in records(bound)] == [False]
    vm.start()
    until(lambda: not bound.engine.holders[vm.vm_id], lambda: "it is still held")
    assert [record.state for record in records(bound)] == [VMState.RUNNING]


@pytest.mark.slow
@pytest.mark.anyio
async def test_tasks_that_are_cancelled_at_any_moment_leave_no_vm(bound: Served) -> None:
    """Before: 32 of 400 stayed."""
    seconds = random.Random(7)

    async def use() -> None:
        async with AsyncVM(bound.rig.config):
            await asyncio.sleep(60)

    async def create() -> None:
        await AsyncVM.create(bound.rig.config)
        await asyncio.sleep(60)

    for _ in range(ROUNDS // 4):
        tasks = [asyncio.create_task(use()) for _ in range(4)]
        for task in tasks:
            await asyncio.sleep(seconds.random() / 10)
            task.cancel()
        await asyncio.wait(tasks)
    await asyncio.to_thread(nothing_is_left, bound)


@pytest.mark.anyio
async def test_a_hold_ends_if_its_end_is_cancelled(bound: Served) -> None:
    async with AsyncVM(bound.rig.config) as vm, EngineClient() as engine:
        held: list[asyncio.Task[None]] = []

        async def hold() -> None:
            async with engine.bind_lifetime(vm.vm_id) as binding:
                held.append(binding)

        holding = asyncio.create_task(hold())
        while not held:
            await asyncio.sleep(0)
        holding.cancel()
        await asyncio.wait({holding})
        assert held[0].done()


@pytest.mark.slow
@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["asyncio", "anyio"])
async def test_a_task_group_of_which_one_task_fails_leaves_no_vm(bound: Served, kind: str) -> None:
    """Before: 61 of 75 stayed."""
    seconds = random.Random(7)

    async def use(fails: bool) -> None:
        async with AsyncVM(bound.rig.config):
            await asyncio.sleep(seconds.random() / 10 if fails else 60)
            raise ZeroDivisionError

    for _ in range(10):
        with pytest.raises(ExceptionGroup):
            if kind == "asyncio":
                async with asyncio.TaskGroup() as tasks:
                    for number in range(6):
                        tasks.create_task(use(number == 0))
            else:
                async with anyio.create_task_group() as group:
                    for number in range(6):
                        group.start_soon(use, number == 0)
    await asyncio.to_thread(nothing_is_left, bound)
