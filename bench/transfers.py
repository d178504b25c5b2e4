"""Measure files to and from a guest, and commands during an upload.

Files are compared with `dd` through a bare port.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable

from bench.bareport import BarePort, bare_port
from bench.home import end_engine
from bench.run import Bench
from squib import AsyncVM

TRANSFER_BYTES = 256 << 20
UPLOAD_BYTES = 1 << 30
_CHUNK = bytes(1 << 18)
_FILE = "/root/transfer"
_IDLE_COMMANDS = 50
_WARM_UP_COMMANDS = 20
_BEGIN_S = 0.5


async def measure_transfers(bench: Bench) -> None:
    """Measure transfers by `dd` and by squib, in turn, for their ratio.

    Both move the same files in each run. The guest's files are on its disk, and larger than its memory.
    """
    async with bench.client() as engine:
        vm = await bench.vm(engine)
        try:
            await vm.start()
            await asyncio.to_thread(end_engine, bench.home)  # QEMU's monitor serves one at a time
            with bare_port(bench.home.vm(vm.vm_id).qemu.qmp_socket) as port:
                await vm.refresh()
                for run in range(bench.runs):
                    bench.on_run(run, bench.runs)
                    await _one_run(bench, vm, port)
        finally:
            await vm.delete()


async def _one_run(bench: Bench, vm: AsyncVM, port: BarePort) -> None:
    size = TRANSFER_BYTES

    async def rate(name: str, transfer: Awaitable[None]) -> float:
        start = time.perf_counter()
        await transfer
        bytes_per_s = size / (time.perf_counter() - start)
        bench.results.add(name, bytes_per_s)
        return bytes_per_s

    await rate("port-in", port.send(vm, "/dev/null", size))
    dd = await rate("port-in-file", port.send(vm, _FILE, size))
    bench.results.add("upload-ratio", await rate("upload", _upload(vm, size)) / dd)
    await rate("port-out", port.receive(vm, "/dev/zero", size))
    dd = await rate("port-out-file", port.receive(vm, _FILE, size))
    bench.results.add("download-ratio", await rate("download", _download(vm, size)) / dd)


async def _upload(vm: AsyncVM, size: int) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(size // len(_CHUNK)):
            yield _CHUNK

    await vm.files.write(_FILE, chunks())


async def _download(vm: AsyncVM, size: int) -> None:
    async for chunk in vm.files.stream(_FILE):
        size -= len(chunk)
    if size:
        raise RuntimeError(f"a download was {-size} bytes too long")


async def measure_latency_under_load(bench: Bench) -> None:
    """Measure commands before, during and after an upload of 1 GiB.

    They run one after the other, in an idle VM except for the upload.
    """
    async with bench.client() as engine:
        vm = await bench.vm(engine)
        try:
            await vm.start()
            for _ in range(_WARM_UP_COMMANDS):
                await vm.run(["true"], check=True)
            bench.on_run(0, 3)
            await _idle_commands(bench, vm)
            bench.on_run(1, 3)
            async with asyncio.TaskGroup() as tasks:
                upload = tasks.create_task(_upload(vm, UPLOAD_BYTES))
                await asyncio.sleep(_BEGIN_S)
                while not upload.done():
                    bench.results.add("exec-busy", await _time_true(vm))
            bench.on_run(2, 3)
            await vm.run(["sync"], check=True)
            await _idle_commands(bench, vm)
        finally:
            await vm.delete()
    idle_s, busy_s = (bench.results.median(name) for name in ("exec-idle", "exec-busy"))
    bench.results.add("exec-busy-ratio", busy_s / idle_s)


async def _idle_commands(bench: Bench, vm: AsyncVM) -> None:
    for _ in range(_IDLE_COMMANDS):
        bench.results.add("exec-idle", await _time_true(vm))


async def _time_true(vm: AsyncVM) -> float:
    start = time.perf_counter()
    await vm.run(["true"], check=True)
    return time.perf_counter() - start
