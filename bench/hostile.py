"""Measure how long commands take while three hostile guests attack.

Root in each hostile guest runs one of the attacks of ``bench/guest`` on the engine or the host. A client keeps sending
requests to each of these VMs, because the engine talks to a guest only during requests.
"""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.run import Bench
from hatch_build import GOARCH, build_agent
from squib import AsyncVM, SquibError

ATTACKS = {
    "frames": "without progress",
    "header": "violated HTTP/2",
    "stderr": "",
}
"""The attacks of `bench/guest`, each with the text by which the engine's errors show it, if they do."""
_SOURCE = Path(__file__).parent / "guest"
_PROGRAM = "/run/hostile"
_COMPLAINT = b"Unexpected port id"
_BEGIN_S = 30.0
_PAUSE_S = 0.05
_WARM_UP_COMMANDS = 20
_COMMANDS_PER_RUN = 10


@dataclass
class Attacker:
    """A hostile guest, and the errors that its client received."""

    vm: AsyncVM
    attack: str
    errors: list[str] = field(default_factory=list)

    def is_attacking(self, bench: Bench) -> bool:
        if self.attack == "stderr":
            log = bench.home.vm(self.vm.vm_id).qemu.vmm_log
            return log.exists() and _COMPLAINT in log.read_bytes()
        return any(ATTACKS[self.attack] in error for error in self.errors)

    async def ask(self) -> None:
        """Send requests to the guest, one after the other."""
        while True:
            try:
                await self.vm.processes()
            except SquibError as error:
                self.errors.append(error.message)
            await asyncio.sleep(_PAUSE_S)


async def measure_hostile(bench: Bench) -> None:
    """Time commands in one VM while three others compute, attack, or stop.

    The VMMs of the three are stopped and continued in turn. First their guests only compute: that is what three busy
    VMs cost a host with few CPUs, without any attack.
    """
    async with bench.client() as engine, AsyncExitStack() as stack:
        vms = []
        for _ in range(1 + len(ATTACKS)):
            vms.append(await bench.vm(engine))
            stack.push_async_callback(vms[-1].delete)
            await vms[-1].start()
        vm, *hostile = vms
        for _ in range(_WARM_UP_COMMANDS):
            await vm.run(["true"], check=True)
        computing = [await each.spawn("while :; do :; done") for each in hostile]
        await _compare(bench, vm, hostile, "hostile-busy")
        for process in computing:
            await process.kill()
        used = disk_bytes(bench.home.root)
        async with _attacked(bench, [Attacker(each, attack) for each, attack in zip(hostile, ATTACKS, strict=True)]):
            await _compare(bench, vm, hostile, "hostile-exec")
        bench.results.add("hostile-disk", disk_bytes(bench.home.root) - used)
    idle_s, attacked_s = (bench.results.median(name) for name in ("hostile-idle", "hostile-exec"))
    bench.results.add("hostile-ratio", attacked_s / idle_s)


async def _compare(bench: Bench, vm: AsyncVM, others: list[AsyncVM], name: str) -> None:
    for run in range(bench.runs):
        bench.on_run(run, bench.runs)
        await _measure(bench, vm, name)
        with _stopped(others):
            await _measure(bench, vm, "hostile-idle")


async def _measure(bench: Bench, vm: AsyncVM, name: str) -> None:
    for _ in range(_COMMANDS_PER_RUN):
        bench.results.add(name, await _time_true(vm))


@contextmanager
def _stopped(vms: list[AsyncVM]) -> Iterator[None]:
    """Stop the VMMs in the block with SIGSTOP.

    A pause would send requests to their agents, which no longer answer.
    """
    pids = [vm.info.pid for vm in vms if vm.info.pid]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@asynccontextmanager
async def _attacked(bench: Bench, attackers: list[Attacker]) -> AsyncIterator[None]:
    """Start the attacks, and run the block when all are under way."""
    program = await asyncio.to_thread(build_program)
    for attacker in attackers:
        await attacker.vm.files.write(_PROGRAM, program, mode=0o755)
        await attacker.vm.spawn([_PROGRAM, attacker.attack])
    asking = [asyncio.create_task(attacker.ask()) for attacker in attackers]
    try:
        async with asyncio.timeout(_BEGIN_S):
            while not all(attacker.is_attacking(bench) for attacker in attackers):
                await asyncio.sleep(_PAUSE_S)
        yield
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


def build_program() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "hostile"
        build_agent(_SOURCE, target, goarch=GOARCH[platform.machine()], agent_version="")
        return target.read_bytes()


async def _time_true(vm: AsyncVM) -> float:
    start = time.perf_counter()
    await vm.run(["true"], check=True)
    return time.perf_counter() - start


def disk_bytes(root: Path) -> int:
    """Return how much disk space the files below a directory take.

    Sparse files take less than their size.
    """
    used = 0
    for path in root.rglob("*"):
        with suppress(FileNotFoundError):
            used += path.lstat().st_blocks * 512
    return used
