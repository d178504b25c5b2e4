"""A real engine with a fake driver: only the guests are fake."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx

from squib.api.app import create_app
from squib.core.engine import Engine, cgroup_parent
from squib.core.startup import open_engine
from squib.drivers.firecracker.driver import FirecrackerDriver
from squib.drivers.firecracker.programs import Programs
from squib.drivers.registry import Drivers
from squib.host import cgroup, processes
from squib.host.probe import KVMProbe
from squib.host.processes import ProcessIdentity
from squib.images.overlay import OverlayStore
from squib.models import OnProgress, VMConfig
from squib.paths import Home
from tests.fakes.assets import make_files, write_elf_kernel
from tests.fakes.driver import FakeDriver
from tests.fakes.firecracker.install import install


class Rig:
    """A state directory, a driver, and engines on them, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.home = Home(folder / "home")
        self.config: VMConfig = make_files(folder / "files")
        self.agent_binary = folder / "files" / "agent"
        self.driver = FakeDriver()

    @property
    def drivers(self) -> Drivers:
        return Drivers.of(self.driver)

    @contextlib.asynccontextmanager
    async def engine(self) -> AsyncIterator[Engine]:
        async with open_engine(self.home, self.drivers, self.agent_binary) as engine:
            yield engine

    @contextlib.asynccontextmanager
    async def http(self) -> AsyncIterator[tuple[Engine, httpx.AsyncClient]]:
        """An engine and a client of its API in this process."""
        async with self.engine() as engine:
            transport = httpx.ASGITransport(create_app(engine), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://squib") as client:
                yield engine, client

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Engine]:
        """Open an engine for a test; in the end, end all VMMs and check that nothing is left of them."""
        try:
            async with asyncio.timeout(30), self.engine() as engine:
                yield engine
        finally:
            self.clean_up()

    def console_log(self, vm_id: str) -> Path:
        """The log of a VM's console, in the directory of its driver."""
        folder = self.home.vm(vm_id).driver(self.driver.name)
        folder.mkdir(exist_ok=True)
        return self.driver.console_log(folder)

    def vmms(self) -> list[int]:
        """The pids of all VMMs of this state directory."""
        if not self.home.vms.exists():
            return []
        return [pid for vm in self.home.vms.iterdir() for pid in processes.find(self._identity(vm))]

    def clean_up(self) -> None:
        if self.home.vms.exists():
            for vm in self.home.vms.iterdir():
                processes.kill(self._identity(vm))

    def _identity(self, vm: Path) -> ProcessIdentity:
        groups = cgroup.directories(cgroup.find_layout(), f"{cgroup_parent(self.home)}/{vm.name}")
        return ProcessIdentity(vm / "vmm.lock", groups)


class StubRig(Rig):
    """Its driver is the one for Firecracker, on the stub; with the jailer only root can use it."""

    def __init__(self, folder: Path, *, jailer: bool) -> None:
        super().__init__(folder)
        kernel = folder / "files" / "vmlinux"
        write_elf_kernel(kernel)
        (folder / "files" / "rootfs").chmod(0o644)
        stub = install(folder / "files")
        programs = Programs(stub.firecracker, stub.jailer, (1, 16, 1))
        self.firecracker = FirecrackerDriver(
            lambda: programs, KVMProbe(True, "the stub needs no KVM", True), jailer_lacks=""
        )
        self.config = self.config.model_copy(update={"kernel_path": str(kernel), "jailer": jailer})

    @property
    def drivers(self) -> Drivers:
        return Drivers.of(self.firecracker)


async def write_overlay(
    self: OverlayStore, target: Path, size_mib: int, on_progress: OnProgress = lambda _: None
) -> None:
    """Create an empty sparse file, in place of `OverlayStore.create`."""
    target.touch(mode=0o600)
    os.truncate(target, size_mib << 20)
