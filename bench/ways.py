"""``python -m bench.ways``: ways to save a VM and to run others from that, compared on this host's QEMU.

One VM of 256 MiB that has written 100 MiB is saved in each way, and six VMMs are started from each result. They run
without a jail, and no guest goes on.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import statistics
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from bench.home import bench_home
from bench.values import read_kib
from squib.core.lifecycle.create import create_vm
from squib.core.lifecycle.delete import delete_vm
from squib.core.lifecycle.launch import machine_spec
from squib.core.startup import open_engine
from squib.drivers.base import FreshMemory, MachineSpec, SavedMemory
from squib.drivers.qemu.command import command_line
from squib.drivers.qemu.driver import PROGRAM, QemuDriver
from squib.drivers.qemu.machine import QemuMachine
from squib.drivers.qemu.qmp import QMP
from squib.drivers.registry import find_drivers
from squib.errors import ToolFailed
from squib.guest.agent import AgentClient
from squib.models import ExecRequest, VMConfig
from squib.paths import Home, QemuPaths

_MEM_SIZE_MIB = 256
_WRITE = "head -c 100M /dev/urandom > /dev/shm/file; sync"
_CHILDREN = 6
_POLL_S = 0.002
_TIMEOUT_S = 60.0
_STARTS = {
    "memfd": "private mapping of a sealed memfd (squib)",
    "file": "private mapping of the file",
    "stream": "incoming migration",
}
_NO_CONFIGURATION = ["-global", "migration.send-configuration=off"]
"""What squib's own saved devices need; a migration has that section."""


@dataclass(frozen=True)
class Saved:
    """How long a VM stood still, and how long it took in all, in seconds; and the blocks of the files."""

    pause_s: float
    total_s: float
    size_mib: float


def main() -> int:
    """Run this process's command line; return its status."""
    parser = argparse.ArgumentParser(prog="python -m bench.ways", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="how often to save the VM in each way (%(default)s)")
    options = parser.parse_args()
    with bench_home() as home:
        asyncio.run(_compare(home, options.runs))
    return 0


async def _compare(home: Home, runs: int) -> None:
    drivers = await find_drivers(home)
    driver = cast(QemuDriver, drivers.by_name["qemu"])
    async with open_engine(home, drivers) as engine:
        config = VMConfig(driver="qemu", mem_size_mib=_MEM_SIZE_MIB, cold=True)
        record = await create_vm(engine, config, start=True, on_progress=lambda _: None, boot_timeout_s=_TIMEOUT_S)
        try:
            vm, spec = engine.running[record.vm_id], await machine_spec(engine, record)
            await _run(vm.agent, _WRITE)
            with tempfile.TemporaryDirectory(dir=home.root) as folder:
                await _compare_saves(cast(QemuMachine, vm.machine), Path(folder), runs)
                await _compare_starts(driver, cast(QemuMachine, vm.machine), spec, Path(folder))
        finally:
            await delete_vm(engine, record.vm_id)


async def _run(agent: AgentClient, command: str) -> None:
    async with await agent.exec(ExecRequest(argv=["/bin/sh", "-c", command])) as response:
        await response.read(max_bytes=1 << 20)


# Saving


async def _compare_saves(machine: QemuMachine, folder: Path, runs: int) -> None:
    print(f"save a VM of {_MEM_SIZE_MIB} MiB that has written 100 MiB (medians of {runs})\n")
    print("| way | stands still | in all | size |\n| --- | --: | --: | --: |")
    ways: dict[str, Callable[[QemuMachine, Path], Awaitable[Saved]]] = {
        "devices, and the written pages (squib)": _save,
        "migration to a file, of a paused VM": _migrate_paused,
        "migration to a file, of a running VM": _migrate_running,
        "background-snapshot (write-protected pages)": _background_snapshot,
        "mapped-ram": _mapped_ram,
    }
    for name, way in ways.items():
        found = []
        try:
            for _ in range(runs):
                with tempfile.TemporaryDirectory(dir=folder) as target:
                    found.append(await way(machine, Path(target)))
        except ToolFailed as error:
            print(f"| {name} | {error.message.rpartition(': ')[2]} | | |")
            await machine.resume()
            continue
        columns = (statistics.median(getattr(one, field) for one in found) for field in ("pause_s", "total_s"))
        pause, total = (f"{value * 1000:.0f} ms" for value in columns)
        print(
            f"| {name} | {pause} | {total} | {statistics.median(one.size_mib for one in found):.0f} MiB |", flush=True
        )


async def _save(machine: QemuMachine, folder: Path) -> Saved:
    began = time.perf_counter()
    await machine.pause()
    complete = await machine.save(folder / "memory", folder / "devices", size_mib=_MEM_SIZE_MIB)
    await machine.resume()
    paused = time.perf_counter() - began
    await complete()
    return Saved(paused, time.perf_counter() - began, _size_mib(folder))


async def _migrate_paused(machine: QemuMachine, folder: Path) -> Saved:
    began = time.perf_counter()
    await machine.pause()
    await _migrate(machine, folder)
    await machine.resume()
    took = time.perf_counter() - began
    return Saved(took, took, _size_mib(folder))


async def _migrate_running(machine: QemuMachine, folder: Path, *capabilities: str) -> Saved:
    began = time.perf_counter()
    status = await _migrate(machine, folder, *capabilities)
    took = time.perf_counter() - began
    await machine.resume()
    return Saved(float(status["downtime"]) / 1000, took, _size_mib(folder))


async def _background_snapshot(machine: QemuMachine, folder: Path) -> Saved:
    return await _migrate_running(machine, folder, "background-snapshot")


async def _mapped_ram(machine: QemuMachine, folder: Path) -> Saved:
    return await _migrate_running(machine, folder, "mapped-ram")


async def _migrate(machine: QemuMachine, folder: Path, *capabilities: str) -> dict[str, Any]:
    """Let QEMU write its whole state to a file, as fast as it can. Raises `ToolFailed`."""
    qmp = machine.qmp
    assert qmp
    for capability in capabilities:
        await _set_capability(qmp, capability, on=True)
    with (folder / "stream").open("xb") as file:
        await qmp.execute("getfd", {"fdname": "stream"}, fd=file.fileno())
    await qmp.execute("migrate-set-parameters", {"max-bandwidth": 1 << 40})
    await qmp.execute("migrate", {"uri": "fd:stream"})
    while (status := cast(dict[str, Any], await qmp.execute("query-migrate")))["status"] != "completed":
        if status["status"] == "failed":
            raise ToolFailed(f"migration: {status.get('error-desc')}")
        await asyncio.sleep(_POLL_S)
    for capability in capabilities:
        await _set_capability(qmp, capability, on=False)
    return status


async def _set_capability(qmp: QMP, capability: str, *, on: bool) -> None:
    await qmp.execute("migrate-set-capabilities", {"capabilities": [{"capability": capability, "state": on}]})


def _size_mib(folder: Path) -> float:
    return sum(path.stat().st_blocks * 512 for path in folder.iterdir()) / (1 << 20)


# Starting from what was saved


async def _compare_starts(driver: QemuDriver, machine: QemuMachine, spec: MachineSpec, folder: Path) -> None:
    await machine.pause()
    await _migrate(machine, folder)
    complete = await machine.save(folder / "memory", folder / "devices", size_mib=_MEM_SIZE_MIB)
    await complete()
    print(f"\nstart {_CHILDREN} VMMs from it (the first; the median of the others; PSS of each)\n")
    print("| way | first | next | memory |\n| --- | --: | --: | --: |")
    for way, label in _STARTS.items():
        async with contextlib.AsyncExitStack() as children:
            times, pids = [], []
            for number in range(_CHILDREN):
                began = time.perf_counter()
                pids.append(await _start(driver, spec, folder, way, number, children))
                times.append(time.perf_counter() - began)
            each = sum(read_kib(f"/proc/{pid}/smaps_rollup", "Pss") for pid in pids) / len(pids) / 1024
            first, following = times[0] * 1000, statistics.median(times[1:]) * 1000
            print(f"| {label} | {first:.0f} ms | {following:.0f} ms | {each:.0f} MiB |", flush=True)


async def _start(
    driver: QemuDriver, spec: MachineSpec, saved: Path, way: str, number: int, children: contextlib.AsyncExitStack
) -> int:
    """Start a VMM that has loaded what ``saved`` holds in this way; return its pid. It ends with ``children``."""
    paths = QemuPaths(saved / f"{way}-{number}")
    paths.root.mkdir()
    fresh = replace(spec, memory=FreshMemory(_MEM_SIZE_MIB))
    mapped = replace(spec, memory=SavedMemory(_MEM_SIZE_MIB, saved / "memory", saved / "devices"))
    is_memfd, is_stream = way == "memfd", way == "stream"
    with contextlib.ExitStack() as opened:
        fds, loading = driver._open(mapped if is_memfd else fresh, paths, opened, private=False)
        if is_stream:
            fds = replace(fds, devices=_opened(saved / "stream", os.O_RDONLY, opened))
        elif not is_memfd:
            memory = _opened(saved / "memory", os.O_RDWR, opened)
            fds = replace(fds, memory=memory, devices=_opened(saved / "devices", os.O_RDONLY, opened))
        argv = command_line(fresh if is_stream else mapped, fds, driver._acceleration, program=PROGRAM)
        if is_stream:
            argv = _without(argv, _NO_CONFIGURATION)
        process = await asyncio.create_subprocess_exec(*argv, pass_fds=fds.all(), stdout=DEVNULL, stderr=DEVNULL)
        children.push_async_callback(process.wait)
        children.callback(process.kill)
    if loading:
        await loading.loaded()
    qmp = await QMP.connect(paths.qmp_socket, timeout_s=_TIMEOUT_S)
    children.callback(qmp.close)
    assert fds.devices is not None
    await qmp.execute("migrate-incoming", {"uri": f"fd:{fds.devices}"})
    while cast(dict[str, Any], await qmp.execute("query-status"))["status"] == "inmigrate":
        await asyncio.sleep(_POLL_S)
    return process.pid


def _opened(path: Path, flags: int, opened: contextlib.ExitStack) -> int:
    fd = os.open(path, flags | os.O_CLOEXEC)
    opened.callback(os.close, fd)
    return fd


def _without(words: list[str], pair: list[str]) -> list[str]:
    """Return ``words`` without the first two that are this ``pair``."""
    at = next(at for at, two in enumerate(itertools.pairwise(words)) if list(two) == pair)
    return words[:at] + words[at + 2 :]


if __name__ == "__main__":
    sys.exit(main())
