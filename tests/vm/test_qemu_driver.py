"""The QEMU driver alone, with real VMs: no engine, no database, the agent at the other end of its port."""

import asyncio
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from squib.drivers.base import ExitKind, MachineSpec
from squib.drivers.qemu.driver import QemuDriver
from squib.drivers.qemu.machine import QemuMachine
from squib.drivers.registry import find_drivers
from squib.errors import BootFailed
from squib.guest.agent import AGENT_BINARY, AgentClient, Identity
from squib.host import processes
from squib.host.jail import Credentials
from squib.host.processes import ProcessIdentity
from squib.images.overlay import OverlayStore
from squib.images.store import ImageStore
from squib.kernels.catalog import KernelStore
from squib.kernels.initramfs import InitramfsStore
from squib.models import ExecRequest
from squib.paths import Home, VMPaths, process_lock
from tests.fakes.machines import machine_spec

BOOT_TIMEOUT_S = 60.0
VMM_UID = 0x7700_0001


@dataclass(frozen=True)
class BootFiles:
    """What any VM boots from."""

    home: Home
    kernel: Path
    initramfs: Path
    base: Path

    async def make_vm(self, vm_id: str) -> tuple[MachineSpec, VMPaths]:
        """A directory with an empty overlay for a VM, and its specification."""
        paths = self.home.vm(vm_id)
        paths.qemu.root.mkdir(parents=True, mode=0o700)
        await OverlayStore(self.home).create(paths.overlay, 256)
        files = {"kernel": self.kernel, "initramfs": self.initramfs, "base": self.base, "overlay": paths.overlay}
        return machine_spec(vm_id, **files), paths


@pytest.fixture(scope="module")
def boot_files(home: Home) -> BootFiles:
    """Squib's own kernel, image and agent; built now if the cache has none."""

    async def build() -> BootFiles:
        kernel = await KernelStore(home).ensure()
        image = await ImageStore(home).ensure("base")
        initramfs = await InitramfsStore(home).ensure(kernel, AGENT_BINARY)
        return BootFiles(home, kernel.path, initramfs, image.path)

    return asyncio.run(build())


@pytest.fixture(scope="module")
def driver() -> QemuDriver:
    return asyncio.run(find_drivers(Home.from_environment())).by_name["qemu"]


@pytest.fixture
def vm(boot_files: BootFiles) -> Iterator[tuple[MachineSpec, VMPaths]]:
    """A VM to launch. Afterwards nothing may be left of it but its directory."""
    spec, paths = asyncio.run(boot_files.make_vm("driver-test"))
    yield spec, paths
    left = processes.holders(process_lock(paths.root, "vmm"))
    processes.kill(ProcessIdentity(process_lock(paths.root, "vmm")))
    sockets = list(paths.root.rglob("*.sock"))
    shutil.rmtree(paths.root)
    assert (left, sockets) == ([], [])


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(3 * BOOT_TIMEOUT_S):
            await test()
            assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(bounded())


def credentials() -> Credentials | None:
    return Credentials(VMM_UID, VMM_UID) if os.geteuid() == 0 else None


async def launch(driver: QemuDriver, spec: MachineSpec, paths: VMPaths) -> QemuMachine:
    who = credentials()
    groups = replace(who, groups=driver.groups) if who else None
    return await driver.launch(
        spec, paths.qemu.root, ProcessIdentity(process_lock(paths.root, "vmm")), groups, lambda pid: None
    )


async def poweroff(machine: QemuMachine) -> None:
    agent = AgentClient(machine.connect_agent)
    await agent.connect(timeout_s=BOOT_TIMEOUT_S)
    await agent.poweroff(grace_s=0.2)
    await machine.wait()
    await agent.close()


async def output(machine: QemuMachine, command: str) -> bytes:
    """What a shell command in the guest prints, with the frames around it."""
    agent = AgentClient(machine.connect_agent)
    await agent.connect(timeout_s=BOOT_TIMEOUT_S)
    await agent.setup(Identity("vm-1", "vm", "0" * 32), env={})
    async with await agent.exec(ExecRequest(shell=command)) as response:
        said = await response.read()
    await agent.close()
    return said


def status(pid: int) -> dict[str, list[str]]:
    """``/proc/PID/status``: the values of each field."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: values.split() for name, _, values in (line.partition(":") for line in lines)}


def test_a_guest_boots_answers_and_powers_off(vm: tuple[MachineSpec, VMPaths], driver: QemuDriver) -> None:
    async def test() -> None:
        machine = await launch(driver, *vm)
        agent = AgentClient(machine.connect_agent)
        hello = await agent.connect(timeout_s=BOOT_TIMEOUT_S)
        assert hello.kernel
        assert b"squib-agent: ready" in machine.console_tail()
        await agent.poweroff(grace_s=0.2)
        reason = await machine.wait()
        assert reason.kind is ExitKind.POWERED_OFF
        await agent.close()

    run(test)


def test_qemu_has_no_privileges_and_no_files_but_its_own(vm: tuple[MachineSpec, VMPaths], driver: QemuDriver) -> None:
    async def test() -> None:
        machine = await launch(driver, *vm)
        fields = status(machine.pid)
        assert fields["NoNewPrivs"] == ["1"]
        assert fields["Seccomp"] == ["2"]
        if credentials():
            assert set(fields["Uid"]) == set(fields["Gid"]) == {str(VMM_UID)}
            assert fields["CapEff"] == fields["CapPrm"] == ["0" * 16]
        limits = Path(f"/proc/{machine.pid}/limits").read_text()
        assert next(line for line in limits.splitlines() if "core file" in line).split()[4] == "0"
        names = {os.path.realpath(fd) for fd in Path(f"/proc/{machine.pid}/fd").iterdir()}
        spec, paths = vm
        own = {
            str(file)
            for file in (
                spec.kernel,
                spec.initramfs,
                *(disk.path for disk in spec.disks),
                paths.qemu.output_pipe,
                process_lock(paths.root, "vmm"),
            )
        }
        assert {name for name in names if name.startswith(str(paths.root.parents[1]))} <= own
        await machine.kill()
        assert (await machine.wait()).kind is ExitKind.KILLED

    run(test)


def test_what_a_guest_wrote_is_there_after_the_next_boot(vm: tuple[MachineSpec, VMPaths], driver: QemuDriver) -> None:
    async def test() -> None:
        for command, said in (
            ("echo kept >/root/note; cat /proc/mounts", b"overlay / "),
            ("cat /root/note", b"kept\n"),
        ):
            machine = await launch(driver, *vm)
            assert said in await output(machine, command)
            await poweroff(machine)

    run(test)


def test_a_machine_outlives_the_engine_and_is_adopted(vm: tuple[MachineSpec, VMPaths], driver: QemuDriver) -> None:
    async def test() -> None:
        first = await launch(driver, *vm)
        await first.detach()
        second = await driver.adopt(vm[1].qemu.root, ProcessIdentity(process_lock(vm[1].root, "vmm")))
        assert second
        assert second.pid == first.pid
        await poweroff(second)
        assert (await second.wait()).kind is ExitKind.POWERED_OFF
        assert await driver.adopt(vm[1].qemu.root, ProcessIdentity(process_lock(vm[1].root, "vmm"))) is None

    run(test)


def test_a_kernel_panic_is_told_from_a_poweroff(vm: tuple[MachineSpec, VMPaths], driver: QemuDriver) -> None:
    """The user's arguments come last on the kernel's command line: here an init that does not exist."""
    spec = replace(vm[0], boot_args="rdinit=/nowhere init=/nowhere")

    async def test() -> None:
        machine = await launch(driver, spec, vm[1])
        reason = await machine.wait()
        assert reason.kind is ExitKind.GUEST_PANICKED
        assert "Kernel panic - not syncing" in reason.text

    run(test)


def test_the_end_of_a_killed_qemu_is_noticed_at_once(vm: tuple[MachineSpec, VMPaths], driver: QemuDriver) -> None:
    async def test() -> None:
        machine = await launch(driver, *vm)
        os.kill(machine.pid, 9)
        start = time.monotonic()
        reason = await machine.wait()
        assert time.monotonic() - start < 0.5
        assert reason.kind is ExitKind.KILLED

    run(test)


def test_a_kernel_that_is_none_fails_with_qemus_own_words(
    vm: tuple[MachineSpec, VMPaths], driver: QemuDriver, tmp_path: Path
) -> None:
    (tmp_path / "kernel").write_bytes(b"no kernel" * 1000)

    async def test() -> None:
        with pytest.raises(BootFailed) as caught:
            await launch(driver, replace(vm[0], kernel=tmp_path / "kernel"), vm[1])
        assert "kernel" in caught.value.detail

    run(test)


def test_files_that_only_the_engine_may_read_boot_too(
    vm: tuple[MachineSpec, VMPaths], driver: QemuDriver, tmp_path: Path
) -> None:
    spec = vm[0]
    base, overlay = spec.disks
    private = replace(
        spec,
        kernel=tmp_path / "kernel",
        initramfs=tmp_path / "initramfs",
        disks=(replace(base, path=tmp_path / "base"), overlay),
    )
    for source, target in (
        (spec.kernel, private.kernel),
        (spec.initramfs, private.initramfs),
        (base.path, private.disks[0].path),
    ):
        shutil.copy(source, target)
        target.chmod(0o400)

    async def test() -> None:
        machine = await launch(driver, private, vm[1])
        await poweroff(machine)

    run(test)
