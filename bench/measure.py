"""The measurements: groups of figures that come from the same VMs."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

from bench import cli
from bench.figures import Results
from bench.home import end_engine
from bench.hostile import measure_hostile
from bench.run import MEM_SIZE_MIB, Bench, Group
from bench.saved import measure_burst, measure_saved
from bench.transfers import measure_latency_under_load, measure_transfers
from bench.values import read_kib
from squib import AsyncVM, EngineClient, ExecResult

STREAM_BYTES = 64 << 20
_WARM_SAMPLES_PER_RUN = 10
_WARM_UP_COMMANDS = 20
_VMS_AT_ONCE = 5


class Laps:
    """A stopwatch: each lap is a sample of a figure."""

    def __init__(self, results: Results) -> None:
        self._results = results
        self._start = time.perf_counter()

    def lap(self, name: str) -> float:
        """Record the time since the last lap; return it, in seconds."""
        now = time.perf_counter()
        took_s, self._start = now - self._start, now
        self._results.add(name, took_s)
        return took_s


async def prepare(bench: Bench) -> None:
    """Run one VM without measuring, so that caches are filled.

    It makes the initramfs, the empty disk and the template, and brings files into the page cache.
    """
    async with bench.client() as engine:
        vm = await bench.vm(engine)
        await vm.start()
        await vm.run(["true"], check=True)
        await vm.delete()


async def measure_lives(bench: Bench) -> None:
    """Measure VMs one after the other, from create to delete."""
    async with bench.client() as engine:
        await engine.info()
        for run in range(bench.runs):
            bench.on_run(run, bench.runs)
            laps = Laps(bench.results)
            vm = await bench.vm(engine, cold=True)
            cold_s = laps.lap("create")
            await vm.start()
            cold_s += laps.lap("boot")
            await vm.run(["true"], check=True)
            cold_s += laps.lap("first-exec")
            bench.results.add("cold-start", cold_s)
            assert vm.info.pid is not None, "a running VM has a VMM"
            bench.results.add("vm-memory", read_kib(f"/proc/{vm.info.pid}/smaps_rollup", "Pss") * 1024)
            laps = Laps(bench.results)
            await vm.stop()
            laps.lap("stop")
            await vm.delete()
            laps.lap("delete-stopped")
            clone_s = await _measure_clone(bench, engine)
            bench.results.add("clone-start", clone_s)
            bench.results.add("clone-ratio", clone_s / cold_s)


async def _measure_clone(bench: Bench, engine: EngineClient) -> float:
    """Measure a VM that is cloned; return the seconds until its first command has ended."""
    laps = Laps(bench.results)
    start = time.perf_counter()
    vm = await bench.vm(engine)
    await vm.start()
    laps.lap("clone")
    await vm.run(["true"], check=True)
    laps.lap("clone-exec")
    took_s = time.perf_counter() - start
    await vm.delete()
    return took_s


async def measure_warm_exec(bench: Bench) -> None:
    """Measure many commands in one VM, with and without a shell.

    The kinds take turns, so that noise affects them alike.
    """
    samples = bench.runs * _WARM_SAMPLES_PER_RUN
    async with bench.client() as engine, AsyncVM(engine=engine, mem_size_mib=MEM_SIZE_MIB) as vm:
        for _ in range(_WARM_UP_COMMANDS):
            await vm.run(["true"], check=True)
            await vm.run("true", check=True)
        for run in range(samples):
            bench.on_run(run, samples)
            laps = Laps(bench.results)
            result = await vm.run(["true"])
            laps.lap("warm-exec")
            await vm.run("true")
            laps.lap("warm-exec-shell")
            await vm.refresh()
            laps.lap("engine-request")
            bench.results.add("warm-exec-guest", result.check("true").duration_s)


async def measure_commands(bench: Bench) -> None:
    """Measure `squib` as a user types it."""
    async with bench.client() as engine, AsyncVM(engine=engine, mem_size_mib=MEM_SIZE_MIB) as vm:
        commands = {
            "cli-exec": ["exec", vm.name, "true"],
            "cli-help": ["--help"],
            "cli-ls": ["ls"],
        }
        for arguments in commands.values():
            await cli.time_squib(bench.home, arguments)
        for run in range(bench.runs):
            bench.on_run(run, bench.runs)
            for name, arguments in commands.items():
                bench.results.add(name, await cli.time_squib(bench.home, arguments))


async def measure_engine_start(bench: Bench) -> None:
    """Measure starts of an engine by the client that needs it."""
    for run in range(bench.runs):
        bench.on_run(run, bench.runs)
        await asyncio.to_thread(end_engine, bench.home)
        async with bench.client() as engine:
            laps = Laps(bench.results)
            info = await engine.info()
            laps.lap("engine-start")
        bench.results.add("engine-rss", read_kib(f"/proc/{info.pid}/status", "VmRSS") * 1024)


async def measure_several_vms(bench: Bench) -> None:
    """Measure five VMs at a time, in a new engine."""
    rounds = -(-bench.runs // _VMS_AT_ONCE)
    for run in range(rounds):
        bench.on_run(run, rounds)
        await asyncio.to_thread(end_engine, bench.home)
        async with bench.client() as engine, AsyncExitStack() as stack:
            vms = [await bench.vm(engine) for _ in range(_VMS_AT_ONCE)]
            for vm in vms:
                stack.push_async_callback(vm.delete)
            await asyncio.gather(*(vm.start() for vm in vms))
            pid = (await engine.info()).pid
            for vm in vms:
                await vm.run(["true"], check=True)
                bench.results.add("engine-rss-5-vms", read_kib(f"/proc/{pid}/status", "VmRSS") * 1024)
            laps = Laps(bench.results)
            for vm in vms:
                await vm.delete()
                laps.lap("delete-running")


async def measure_streams(bench: Bench) -> None:
    """Measure 64 MiB out of a command, and 64 MiB into another.

    The second command counts the bytes.
    """
    async with bench.client() as engine, AsyncVM(engine=engine, mem_size_mib=MEM_SIZE_MIB) as vm:
        zeros = bytes(STREAM_BYTES)
        for run in range(bench.runs):
            bench.on_run(run, bench.runs)
            start = time.perf_counter()
            result = await vm.run(["head", "-c", str(STREAM_BYTES), "/dev/zero"], check=True)
            bench.results.add("stdout", STREAM_BYTES / (time.perf_counter() - start))
            _expect(result, result.stdout_bytes == zeros)
            start = time.perf_counter()
            result = await vm.run(["wc", "-c"], input=zeros, check=True)
            bench.results.add("stdin", STREAM_BYTES / (time.perf_counter() - start))
            _expect(result, result.stdout.strip() == str(STREAM_BYTES))


def _expect(result: ExecResult, right: bool) -> None:
    if not right:
        raise RuntimeError(f"the bytes that were sent are not those that came: {result}")


GROUPS = (
    Group(
        "lives of VMs",
        (
            "cold-start",
            "create",
            "boot",
            "first-exec",
            "vm-memory",
            "stop",
            "delete-stopped",
            "clone-start",
            "clone",
            "clone-exec",
            "clone-ratio",
        ),
        measure_lives,
    ),
    Group(
        "forks, snapshots, suspends",
        (
            "fork",
            "fork-first",
            "fork-pause",
            "fork-ten",
            "fork-memory",
            "fork-large-ratio",
            "snapshot",
            "restore-first",
            "suspend",
            "resume-first",
        ),
        measure_saved,
    ),
    Group("twenty VMs at once", ("burst-p50", "burst-p95"), measure_burst),
    Group(
        "warm commands",
        ("warm-exec", "warm-exec-shell", "warm-exec-guest", "engine-request"),
        measure_warm_exec,
    ),
    Group("the command line", ("cli-exec", "cli-help", "cli-ls"), measure_commands),
    Group("engine starts", ("engine-start", "engine-rss"), measure_engine_start),
    Group("five VMs at once", ("engine-rss-5-vms", "delete-running"), measure_several_vms),
    Group("streams", ("stdout", "stdin"), measure_streams),
    Group(
        "transfers of files",
        (
            "upload",
            "port-in-file",
            "upload-ratio",
            "port-in",
            "download",
            "port-out-file",
            "download-ratio",
            "port-out",
        ),
        measure_transfers,
    ),
    Group("commands during an upload", ("exec-idle", "exec-busy", "exec-busy-ratio"), measure_latency_under_load),
    Group(
        "commands beside hostile guests",
        ("hostile-idle", "hostile-busy", "hostile-exec", "hostile-ratio", "hostile-disk"),
        measure_hostile,
    ),
)
