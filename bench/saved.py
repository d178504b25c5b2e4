"""Measure what is saved and goes on: forks, snapshots, suspends, and many clones at once."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from bench.run import Bench
from bench.values import read_kib
from squib import AsyncProcess, AsyncVM, EngineClient, ExecResult

_SMALL_MIB, _LARGE_MIB, _TOUCHED_MIB = 256, 1024, 100
_FORKS = 10
_BURST = 20
_GAP = "/dev/shm/longest-gap"
_TICKS = f"""
import itertools, time
last, longest = time.time(), 1e9
for tick in itertools.count():
    time.sleep(0.002)
    now = time.time()
    if tick == 100:
        longest = 0
        print("ready", flush=True)
    if now - last > longest:
        longest = now - last
        open("{_GAP}", "w").write(str(longest))
    last = now
"""
_TOUCH = f"import time\ndata = bytearray({_TOUCHED_MIB} << 20)\nprint('touched', flush=True)\ntime.sleep(1000)"


async def measure_saved(bench: Bench) -> None:
    """Measure an idle VM of 256 MiB that is forked, saved and suspended, again and again; and a larger one."""
    async with bench.client() as engine, _vm(engine, _SMALL_MIB) as vm, _vm(engine, _LARGE_MIB) as large:
        await _spawn(large, _TOUCH, "touched")
        for run in range(bench.runs):
            bench.on_run(run, bench.runs)
            small_s, first_s = await _time_fork(vm)
            bench.results.add("fork", small_s)
            bench.results.add("fork-first", first_s)
            large_s, _ = await _time_fork(large)
            bench.results.add("fork-large-ratio", large_s / small_s)
            await _measure_pause(bench, vm)
            await _measure_ten_forks(bench, vm)
            await _measure_snapshot(bench, engine, vm)
            start = time.perf_counter()
            await vm.suspend()
            bench.results.add("suspend", time.perf_counter() - start)
            start = time.perf_counter()
            await vm.start()
            await vm.run(["true"], check=True)
            bench.results.add("resume-first", time.perf_counter() - start)


@contextlib.asynccontextmanager
async def _vm(engine: EngineClient, mem_size_mib: int) -> AsyncIterator[AsyncVM]:
    """A VM that runs and has run a command. It is a clone, as most VMs are."""
    for _ in range(2):  # the first one leaves the template
        async with AsyncVM(engine=engine, mem_size_mib=mem_size_mib) as vm:
            await vm.run(["true"], check=True)
    async with AsyncVM(engine=engine, mem_size_mib=mem_size_mib) as vm:
        await vm.run(["true"], check=True)
        yield vm


async def _spawn(vm: AsyncVM, program: str, word: str) -> AsyncProcess:
    """Start a Python program in the background; return when it has printed ``word``."""
    process = await vm.spawn(["python3", "-c", program])
    async for chunk in process:
        if word.encode() in chunk.data:
            return process
    raise RuntimeError("the program has ended")


async def _time_fork(vm: AsyncVM) -> tuple[float, float]:
    """Return the seconds until a fork is ready, and until it has run its first command."""
    start = time.perf_counter()
    [fork] = await vm.fork()
    ready_s = time.perf_counter() - start
    await fork.run(["true"], check=True)
    first_s = time.perf_counter() - start
    await fork.delete()
    return ready_s, first_s


async def _measure_pause(bench: Bench, vm: AsyncVM) -> None:
    """Measure how long a program in the VM stands still while its VM is forked, by the guest's wall clock.

    The clock is set before the program goes on, so the program sees the pause as a jump.
    """
    process = await _spawn(vm, _TICKS, "ready")
    [fork] = await vm.fork()
    await process.kill()
    bench.results.add("fork-pause", float(await vm.files.read_text(_GAP)))
    await fork.delete()


async def _measure_ten_forks(bench: Bench, vm: AsyncVM) -> None:
    start = time.perf_counter()
    forks = await vm.fork(_FORKS)
    bench.results.add("fork-ten", time.perf_counter() - start)
    for fork in forks:
        await fork.run(["true"], check=True)
    for fork in forks:
        bench.results.add("fork-memory", read_kib(f"/proc/{fork.info.pid}/smaps_rollup", "Pss") * 1024)
    for fork in forks:
        await fork.delete()


async def _measure_snapshot(bench: Bench, engine: EngineClient, vm: AsyncVM) -> None:
    start = time.perf_counter()
    saved = await vm.snapshot()
    bench.results.add("snapshot", time.perf_counter() - start)
    start = time.perf_counter()
    async with AsyncVM(engine=engine, snapshot=saved.snapshot_id) as copy:
        await copy.run(["true"], check=True)
        bench.results.add("restore-first", time.perf_counter() - start)
    await engine.delete_snapshot(saved.snapshot_id)


async def measure_burst(bench: Bench) -> None:
    """Measure many VMs that are created at once, each until its first command has ended."""

    async def one(engine: EngineClient) -> float:
        start = time.perf_counter()
        async with AsyncVM(engine=engine) as vm:
            result: ExecResult = await vm.run(["true"], check=True)
            assert result.ok
            return time.perf_counter() - start

    async with bench.client() as engine:
        for run in range(bench.runs):
            bench.on_run(run, bench.runs)
            times = sorted(await asyncio.gather(*(one(engine) for _ in range(_BURST))))
            bench.results.add("burst-p50", times[_BURST // 2])
            bench.results.add("burst-p95", times[_BURST * 95 // 100])
