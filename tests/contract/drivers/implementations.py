"""The drivers under test, and what a machine of each boots from."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from squib.drivers.base import Driver, Machine, MachineSpec
from squib.drivers.registry import find_drivers
from squib.guest.agent import AGENT_BINARY, AgentClient
from squib.host import processes
from squib.host.jail import Credentials
from squib.host.processes import ProcessIdentity
from squib.images.overlay import OverlayStore
from squib.images.store import ImageStore
from squib.kernels.catalog import KernelStore
from squib.kernels.initramfs import InitramfsStore
from squib.paths import Home
from tests.fakes.assets import make_files
from tests.fakes.driver import FakeDriver
from tests.fakes.machines import machine_spec

BOOT_TIMEOUT_S = 60.0
VMM_UID = 0x7700_0002


@dataclass
class Subject:
    """A driver, a machine that it can launch, and the places that belong to that machine."""

    driver: Driver
    spec: MachineSpec
    folder: Path
    identity: ProcessIdentity
    credentials: Credentials | None

    async def launch(
        self, spec: MachineSpec | None = None, on_spawned: Callable[[int], None] = lambda pid: None
    ) -> Machine:
        """Launch the machine."""
        return await self.driver.launch(spec or self.spec, self.folder, self.identity, self.credentials, on_spawned)

    async def adopt(self) -> Machine | None:
        """Find the machine that was launched before."""
        return await self.driver.adopt(self.folder, self.identity)

    def processes(self) -> list[int]:
        """The pids that belong to the machine."""
        return processes.find(self.identity)

    def sockets(self) -> list[str]:
        """The sockets in the driver's directory."""
        return sorted(path.name for path in self.folder.rglob("*") if path.is_socket())


@contextlib.asynccontextmanager
async def agent_of(machine: Machine) -> AsyncIterator[AgentClient]:
    """A client of the machine's agent that has answered."""
    agent = AgentClient(machine.connect_agent)
    try:
        await agent.connect(timeout_s=BOOT_TIMEOUT_S, retry_s=1)
        yield agent
    finally:
        await agent.close()


@contextlib.asynccontextmanager
async def subject(name: str, folder: Path) -> AsyncIterator[Subject]:
    """A subject of the driver ``name``. Afterwards no process and no socket of it is left."""
    make = {"fake": _fake, "qemu": _qemu}[name]
    vm = folder / "vm"
    (vm / name).mkdir(parents=True, mode=0o700)
    driver, spec = await make(folder, vm / "overlay.ext4")
    uid = VMM_UID if name != "fake" and os.geteuid() == 0 else None
    credentials = Credentials(uid, uid, driver.groups) if uid is not None else None
    found = Subject(driver, spec, vm / name, ProcessIdentity(vm / "vmm.lock"), credentials)
    yield found
    left, sockets = found.processes(), found.sockets()
    processes.kill(found.identity)
    assert (left, sockets) == ([], [])


async def _fake(folder: Path, overlay: Path) -> tuple[Driver, MachineSpec]:
    make_files(folder / "files")
    overlay.touch()
    files = folder / "files"
    spec = machine_spec(
        "vm-1", kernel=files / "kernel", initramfs=files / "agent", base=files / "rootfs", overlay=overlay
    )
    return FakeDriver(), spec


async def _qemu(folder: Path, overlay: Path) -> tuple[Driver, MachineSpec]:
    home = Home.from_environment()
    kernel = await KernelStore(home).ensure()
    image = await ImageStore(home).ensure("base")
    initramfs = await InitramfsStore(home).ensure(kernel, AGENT_BINARY)
    await OverlayStore(home).create(overlay, 256)
    spec = machine_spec("vm-1", kernel=kernel.path, initramfs=initramfs, base=image.path, overlay=overlay)
    return (await find_drivers(home)).by_name["qemu"], spec


def broken(subject: Subject, folder: Path) -> MachineSpec:
    """A machine whose VMM ends as soon as it has started."""
    if isinstance(subject.driver, FakeDriver):
        subject.driver.behaviour = "--die"
        return subject.spec
    kernel = folder / "no-kernel"
    kernel.write_bytes(b"this is no kernel")
    return replace(subject.spec, kernel=kernel)
