"""`kill -9` of a real Firecracker, and of its jailer, at one system call after the other.

The launch fails or the VMM's end is noticed, and nothing is left.
"""

import asyncio
import contextlib
import os
import re
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from squib.drivers.base import ExitKind, Machine
from squib.drivers.firecracker.driver import FirecrackerDriver
from squib.drivers.firecracker.programs import Programs, find_programs
from squib.errors import BootFailed
from squib.host.probe import probe_kvm
from squib.paths import FirecrackerRelease, Home
from tests.contract.drivers.implementations import Subject, agent_of, subject
from tests.processes import until
from tests.vm.conftest import PATIENCE

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.nested,
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed"),
]
VMM_CALLS = {
    "accept4", "bind", "epoll_ctl", "eventfd2", "execve", "ftruncate", "ioctl", "listen", "memfd_create", "prctl",
    "recvmsg", "sendto", "setgid", "setgroups", "setsid", "setuid", "socket", "timerfd_create",
}  # fmt: skip
"""Where the jailer's child is killed: until it is Firecracker, and until Firecracker runs the guest."""
TRACED = """#!/bin/sh
echo $$ > {pipe}
kill -STOP $$
exec {jailer} "$@"
"""
END_TIMEOUT_S = 10.0
Step = tuple[str, int]
"""A system call: its name, and how many of this name its thread has made."""


class Tracer:
    """A Firecracker whose jailer waits until strace has attached to it."""

    def __init__(self, folder: Path, programs: Programs) -> None:
        self._pipe, self._record = folder / "traced", folder / "record"
        os.mkfifo(self._pipe)
        jailer = folder / "jailer"
        jailer.write_text(TRACED.format(pipe=self._pipe, jailer=programs.jailer))
        jailer.chmod(0o755)
        self.programs = Programs(programs.vmm, jailer, programs.version)

    @contextlib.asynccontextmanager
    async def trace(self, *options: str) -> AsyncIterator[None]:
        """Trace the next jailer."""
        tracing = asyncio.create_task(self._trace(*options))
        try:
            yield
        finally:
            async with asyncio.timeout(END_TIMEOUT_S * PATIENCE):
                await tracing

    def steps(self) -> tuple[list[Step], list[Step]]:
        """What the last traced jailer did after it had begun, and what its child did, thread by thread."""
        counts: Counter[tuple[str, str]] = Counter()
        steps: dict[str, list[Step]] = {}
        for thread, call in re.findall(r"^(\d+) +(\w+)\(", self._record.read_text(), re.MULTILINE):
            counts[thread, call] += 1
            steps.setdefault(thread, []).append((call, counts[thread, call]))
        jailer, *others = steps.values()
        return jailer[jailer.index(("execve", 1)) + 1 :], [step for other in others for step in other]

    async def _trace(self, *options: str) -> None:
        pid = int(await asyncio.to_thread(self._pipe.read_text))
        status = Path(f"/proc/{pid}/status")
        await asyncio.to_thread(until, lambda: "State:\tT" in status.read_text(), "it does not stop")
        strace = await asyncio.create_subprocess_exec("strace", "-qq", "-o", self._record, *options, "-p", str(pid))
        await asyncio.to_thread(until, lambda: "TracerPid:\t0" not in status.read_text(), "strace does not attach")
        os.kill(pid, signal.SIGCONT)
        await strace.wait()


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Subject]:
    async with subject("firecracker", tmp_path) as made:
        yield made


@pytest.fixture
async def tracer(machine: Subject, tmp_path: Path) -> Tracer:
    """Traces what the machine's driver starts."""
    programs = await find_programs(FirecrackerRelease(Home.from_environment().firecracker))
    assert isinstance(programs, Programs)
    tracer = Tracer(tmp_path, programs)
    machine.driver = FirecrackerDriver(lambda: tracer.programs, await probe_kvm(), jailer_lacks="")
    return tracer


async def test_the_jailer_killed_at_each_system_call(machine: Subject, tracer: Tracer) -> None:
    async with tracer.trace("-f"):
        await (await machine.launch()).kill()
    steps, _ = tracer.steps()
    for step in steps:
        async with tracer.trace(*kill_at(step)):
            if vmm := await launch_unless_killed(machine):
                assert steps.index(step) > steps.index(("clone", 1))  # it had started Firecracker
                await vmm.kill()
    assert {"pivot_root", "mknod", "clone", "exit_group"} < {call for call, _ in steps}
    await it_runs(machine, tracer)


async def test_firecracker_killed_at_each_step_until_the_guest_runs(machine: Subject, tracer: Tracer) -> None:
    async with tracer.trace("-f"):
        await (await machine.launch()).kill()
    _, steps = tracer.steps()
    for step in dict.fromkeys(step for step in steps if step[0] in VMM_CALLS):
        async with tracer.trace("-f", *kill_at(step)):
            if vmm := await launch_unless_killed(machine):
                async with asyncio.timeout(END_TIMEOUT_S * PATIENCE):
                    assert (await vmm.wait()).kind is ExitKind.KILLED
        assert (machine.processes(), machine.sockets(), machine.mounts()) == ([], [], []), step
    assert {call for call, _ in steps} > VMM_CALLS
    await it_runs(machine, tracer)


def kill_at(step: Step) -> tuple[str, str]:
    """Return strace's options that kill a process at this step."""
    call, number = step
    return f"--trace={call}", f"--inject={call}:signal=KILL:when={number}"


async def launch_unless_killed(machine: Subject) -> Machine | None:
    """Launch the machine; return nothing if that failed and nothing is left."""
    try:
        return await machine.launch()
    except BootFailed as error:
        assert re.search("jailer was killed by SIGKILL|Firecracker ended before", error.message)
        assert (machine.processes(), machine.sockets(), machine.mounts()) == ([], [], [])
        return None


async def it_runs(machine: Subject, tracer: Tracer) -> None:
    """A machine that nobody kills runs."""
    async with tracer.trace("--trace=none"):
        vmm = await machine.launch()
        async with agent_of(vmm):
            pass
        await vmm.kill()
