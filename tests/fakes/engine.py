"""A real engine with a fake driver: only the guests are fake."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx

from squib.api.app import create_app
from squib.core.engine import Engine
from squib.core.startup import open_engine
from squib.drivers.registry import Drivers
from squib.host import processes
from squib.host.processes import ProcessIdentity
from squib.images.overlay import OverlayStore
from squib.models import OnProgress, VMConfig
from squib.paths import Home
from tests.fakes.assets import make_files
from tests.fakes.driver import FakeDriver


class Rig:
    """A state directory, a driver, and engines on them, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.home = Home(folder / "home")
        self.config: VMConfig = make_files(folder / "files")
        self.agent_binary = folder / "files" / "agent"
        self.driver = FakeDriver()

    @contextlib.asynccontextmanager
    async def engine(self) -> AsyncIterator[Engine]:
        async with open_engine(self.home, Drivers.of(self.driver), self.agent_binary) as engine:
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
        return [pid for vm in self.home.vms.iterdir() for pid in processes.holders(vm / "vmm.lock")]

    def clean_up(self) -> None:
        if self.home.vms.exists():
            for vm in self.home.vms.iterdir():
                processes.kill(ProcessIdentity(vm / "vmm.lock"))


async def write_overlay(
    self: OverlayStore, target: Path, size_mib: int, on_progress: OnProgress = lambda _: None
) -> None:
    """Create an empty sparse file, in place of `OverlayStore.create`."""
    target.touch(mode=0o600)
    os.truncate(target, size_mib << 20)
