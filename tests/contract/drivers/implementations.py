"""The drivers under test, and what a machine of each boots from."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from squib.drivers.base import Driver, Machine, MachineSpec
from squib.drivers.firecracker.driver import FirecrackerDriver
from squib.drivers.firecracker.programs import Programs
from squib.drivers.registry import find_drivers
from squib.guest.agent import AGENT_BINARY, AgentClient, Identity
from squib.host import cgroup, processes
from squib.host.jail import Credentials
from squib.host.probe import KVMProbe
from squib.host.processes import ProcessIdentity
from squib.images.overlay import OverlayStore
from squib.images.store import ImageStore
from squib.kernels.catalog import KernelStore
from squib.kernels.initramfs import InitramfsStore
from squib.paths import Home
from tests.fakes.assets import make_files, write_elf_kernel
from tests.fakes.driver import FakeDriver
from tests.fakes.firecracker.install import Stub, install
from tests.fakes.machines import machine_spec

WORKS = KVMProbe(True, "the stub needs no KVM", True)
BOOT_TIMEOUT_S = 60.0 * float(os.environ.get("SQUIB_TEST_PATIENCE", "1"))
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

    def mounts(self) -> list[str]:
        """The mounts below the driver's directory that this process sees."""
        return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(self.folder) in line]


@contextlib.asynccontextmanager
async def agent_of(machine: Machine) -> AsyncIterator[AgentClient]:
    """A client of the machine's agent, which has an identity."""
    agent = AgentClient(machine.connect_agent)
    try:
        await agent.connect(timeout_s=BOOT_TIMEOUT_S, retry_s=1)
        await agent.setup(Identity("vm-1", "machine", "0" * 32), env={})
        yield agent
    finally:
        await agent.close()


@contextlib.asynccontextmanager
async def subject(name: str, folder: Path) -> AsyncIterator[Subject]:
    """A subject of the driver ``name``. Afterwards no process and no socket of it is left."""
    make, confined = {
        "fake": (_fake, False),
        "stub": (_stub, False),
        "jailed stub": (_jailed_stub, True),
        "qemu": (_qemu, True),
        "firecracker": (_firecracker, True),
    }[name]
    vm = folder / "vm"
    vm.mkdir(mode=0o700)
    driver, spec = await make(folder, vm / "overlay.ext4")
    (vm / driver.name).mkdir(mode=0o700)
    uid = VMM_UID if confined and os.geteuid() == 0 else None
    credentials = Credentials(uid, uid, driver.groups) if uid is not None else None
    with _own_cgroup() as cgroups:
        found = Subject(driver, spec, vm / driver.name, ProcessIdentity(vm / "vmm.lock", cgroups), credentials)
        yield found
        left, sockets = found.processes(), found.sockets()
        processes.kill(found.identity)
    assert (left, sockets) == ([], [])


@contextlib.contextmanager
def _own_cgroup() -> Iterator[tuple[Path, ...]]:
    """A cgroup for one machine, or none if this user may not create one."""
    layout, name = cgroup.find_layout(), f"squib/contract-{os.getpid()}"
    if layout.missing:
        yield ()
        return
    cgroup.create(layout, name, cgroup.Limits(memory_mib=1024, cpus=2, pids=256))
    try:
        yield cgroup.directories(layout, name)
    finally:
        cgroup.remove(layout, name)


async def _fake(folder: Path, overlay: Path) -> tuple[Driver, MachineSpec]:
    make_files(folder / "files")
    overlay.touch()
    files = folder / "files"
    spec = machine_spec(
        "vm-1", kernel=files / "kernel", initramfs=files / "agent", base=files / "rootfs", overlay=overlay
    )
    return FakeDriver(), spec


async def _stub(folder: Path, overlay: Path) -> tuple[Driver, MachineSpec]:
    """Firecracker without its jailer, on the stub."""
    _, spec = await _fake(folder, overlay)
    kernel = folder / "files" / "vmlinux"
    write_elf_kernel(kernel)
    stub = install(folder / "files", version="1.17.0")  # 1.16 cannot be resumed
    programs = Programs(stub.firecracker, stub.jailer, (1, 17, 0))
    return FirecrackerDriver(lambda: programs, WORKS, jailer_lacks=""), replace(spec, kernel=kernel, jailer=False)


async def _jailed_stub(folder: Path, overlay: Path) -> tuple[Driver, MachineSpec]:
    driver, spec = await _stub(folder, overlay)
    for disk in spec.disks:
        disk.path.chmod(0o644)
    return driver, replace(spec, jailer=True)


async def _qemu(folder: Path, overlay: Path) -> tuple[Driver, MachineSpec]:
    return await _real("qemu", overlay)


async def _firecracker(folder: Path, overlay: Path) -> tuple[Driver, MachineSpec]:
    return await _real("firecracker", overlay)


async def _real(name: str, overlay: Path) -> tuple[Driver, MachineSpec]:
    """A driver that this host has. ``SQUIB_DRIVER`` can name the only one to test."""
    if os.environ.get("SQUIB_DRIVER", name) != name:
        pytest.skip("SQUIB_DRIVER names another driver")
    home = Home.from_environment()
    driver = (await find_drivers(home)).get(name)
    if problem := driver.problem():
        pytest.skip(problem.text)
    kernel = await KernelStore(home).ensure()
    image = await ImageStore(home).ensure("base")
    initramfs = await InitramfsStore(home).ensure(kernel, AGENT_BINARY)
    await OverlayStore(home).create(overlay, 256)
    spec = machine_spec("vm-1", kernel=kernel.path, initramfs=initramfs, base=image.path, overlay=overlay)
    return driver, spec


def broken(subject: Subject, folder: Path) -> MachineSpec:
    """A machine whose VMM ends as soon as it has started."""
    files = folder / "files"
    if (files / "stub.settings.json").exists():
        Stub(files).fail("PUT /actions InstanceStart", "die", status=1)
        return subject.spec
    if isinstance(subject.driver, FakeDriver):
        subject.driver.behaviour = "--die"
        return subject.spec
    kernel = folder / "no-kernel"
    kernel.write_bytes(b"\x7fELF, but no kernel")
    return replace(subject.spec, kernel=kernel)
