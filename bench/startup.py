"""``python -m bench.startup``: where the time of a start goes, step by step, for each driver of this host.

It starts VMs in this process, and times the functions that a start awaits, without changing them.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from bench.home import bench_home
from squib.core.lifecycle.create import create_vm
from squib.core.lifecycle.delete import delete_vm
from squib.core.lifecycle.start import start_vm
from squib.core.snapshots import templates
from squib.core.startup import open_engine
from squib.drivers.firecracker import driver as firecracker
from squib.drivers.firecracker.api import ApiClient
from squib.drivers.qemu import driver as qemu
from squib.drivers.qemu import memories
from squib.drivers.qemu.qmp import QMP
from squib.drivers.registry import find_drivers
from squib.guest.agent import AgentClient
from squib.host import chroot, jail
from squib.models import VMConfig
from squib.paths import Home

Steps = dict[str, float]
"""Seconds by step, in the order in which the steps began."""
_STEPS: tuple[tuple[object, str, Callable[..., str]], ...] = (
    (qemu.QemuDriver, "_open", lambda *_, **__: "open files"),
    (jail, "start", lambda *_, **__: "make the jail, start QEMU"),
    (memories.LoadingMemory, "loaded", lambda *_, **__: "load the guest's memory"),
    (QMP, "connect", lambda *_, **__: "wait for QEMU's monitor"),
    (qemu, "_load_devices", lambda *_, **__: "load the state of the devices"),
    (jail.Confined, "seal", lambda *_, **__: "seal the jail"),
    (QMP, "execute", lambda _, command, *__, **___: f"monitor: {command}"),
    (chroot, "run", lambda *_, **__: "make the chroot, run the jailer"),
    (firecracker, "_wait_for_api", lambda *_, **__: "wait for Firecracker's API"),
    (ApiClient, "request", lambda _, asked, **__: f"API: {asked.method} {asked.path}"),
    (templates, "replace_disk", lambda *_, **__: "copy the template's disk"),
    (templates, "leave", lambda *_, **__: "leave a template"),
    (AgentClient, "shake_hands", lambda *_, **__: "until the agent answers"),
    (AgentClient, "setup", lambda *_, **__: "set the guest up"),
)
_OTHER = "everything else"


def main() -> int:
    """Run this process's command line; return its status."""
    parser = argparse.ArgumentParser(prog="python -m bench.startup", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="how often to start a VM with each driver (%(default)s)")
    parser.add_argument("--boot-timeout", type=float, default=30.0, metavar="SECONDS")
    parser.add_argument("--json", action="store_true", help="print JSON with every sample")
    options = parser.parse_args()
    with bench_home() as home:
        samples = asyncio.run(measure(home, options.runs, options.boot_timeout))
    if options.json:
        print(json.dumps(samples, indent=2))
    else:
        print("\n\n".join(table(driver, found) for driver, found in samples.items()))
    return 0


async def measure(home: Home, runs: int, boot_timeout_s: float) -> dict[str, list[Steps]]:
    """Start a VM ``runs`` times with each driver that can run VMs here, booted and cloned; return the steps."""
    samples: dict[str, list[Steps]] = defaultdict(list)
    drivers = await find_drivers(home)
    usable = [driver for driver in drivers.by_name.values() if driver.problem() is None]
    kinds = [(driver, cold) for driver in usable for cold in (True, False) if cold or driver.capabilities.save]
    async with open_engine(home, drivers) as engine:
        for run in range(runs + 1):  # the first fills caches and does not count
            for driver, cold in kinds:
                config = VMConfig(driver=driver.name, cold=cold)
                vm = await create_vm(engine, config, start=False, on_progress=lambda _: None)
                with timed() as steps:
                    began = time.perf_counter()
                    await start_vm(engine, vm.vm_id, boot_timeout_s=boot_timeout_s)
                    took = time.perf_counter() - began
                await delete_vm(engine, vm.vm_id)
                how = "booted" if cold else "cloned"
                if run:
                    samples[f"{driver.name}, {driver.accelerator}, {how}"].append(
                        steps | {_OTHER: took - sum(steps.values()), "total": took}
                    )
                print(f"{driver.name}, {how}: {took:.2f} s", file=sys.stderr)
    return dict(samples)


@contextmanager
def timed() -> Iterator[Steps]:
    """Time each step until the block ends. A step that others are part of counts without them."""
    steps: Steps = {}
    inner: list[float] = []

    def wrap(function: Callable[..., Any], name: Callable[..., str]) -> Callable[..., Any]:
        def begin() -> float:
            inner.append(0.0)
            return time.perf_counter()

        def end(label: str, began: float) -> None:
            took = time.perf_counter() - began
            steps[label] = steps.get(label, 0.0) + took - inner.pop()
            if inner:
                inner[-1] += took

        @functools.wraps(function)
        async def awaited(*arguments: Any, **options: Any) -> Any:
            label, began = name(*arguments, **options), begin()
            try:
                result: Awaitable[Any] = function(*arguments, **options)
                return await result
            finally:
                end(label, began)

        @functools.wraps(function)
        def called(*arguments: Any, **options: Any) -> Any:
            label, began = name(*arguments, **options), begin()
            try:
                return function(*arguments, **options)
            finally:
                end(label, began)

        return awaited if asyncio.iscoroutinefunction(function) else called

    with ExitStack() as restored:
        for owner, attribute, name in _STEPS:
            original = vars(owner)[attribute]
            is_class_method = isinstance(original, classmethod)
            wrapped = wrap(original.__func__ if is_class_method else original, name)
            setattr(owner, attribute, classmethod(wrapped) if is_class_method else wrapped)
            restored.callback(setattr, owner, attribute, original)
        yield steps


def table(driver: str, samples: list[Steps]) -> str:
    """Return the medians of a driver's steps, with their shares of the whole."""
    medians = {
        step: statistics.median(sample.get(step, 0.0) for sample in samples)
        for step in dict.fromkeys(step for sample in samples for step in sample)
    }
    total = medians["total"]
    width = max(map(len, medians))
    lines = [f"{step:<{width}}  {took * 1000:9.1f} ms  {took / total:6.1%}" for step, took in medians.items()]
    return "\n".join([f"{driver} (medians of {len(samples)} starts)", *lines])


if __name__ == "__main__":
    sys.exit(main())
