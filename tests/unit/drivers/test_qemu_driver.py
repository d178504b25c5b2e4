"""Launching, watching, ending and adopting machines, with a program that passes for QEMU (`tests.fakes.qemu`)."""

import asyncio
import os
import shlex
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from squib.drivers.base import Driver, ExitKind, Machine, MachineSpec, Needs, lacking
from squib.drivers.qemu import driver as qemu_driver
from squib.drivers.qemu.driver import QemuDriver, parse_version
from squib.drivers.qemu.machine import QemuMachine
from squib.errors import BootFailed, DependencyMissing, HostError, WrongState
from squib.host import logs, processes
from squib.host.jail import Jail, JailMode
from squib.host.probe import KVMProbe, NestingProbe
from squib.host.processes import ProcessIdentity
from squib.models import CheckStatus
from squib.paths import VMPaths, process_lock
from tests.fakes import qemu as fake_qemu
from tests.fakes.machines import machine_spec
from tests.fakes.tools import ToolBox

NO_KVM = KVMProbe(usable=False, reason="a guest stopped at an SSE2 instruction", present=True)
NO_JAIL = Jail(JailMode.NONE, "the stand-in for QEMU needs files of this test")


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToolBox:
    tools = ToolBox(tmp_path, monkeypatch)
    tools.add("qemu-system-x86_64", f'exec {shlex.quote(sys.executable)} {shlex.quote(fake_qemu.__file__)} "$@"')
    return tools


@pytest.fixture
def paths(tmp_path: Path, tools: ToolBox) -> Iterator[VMPaths]:
    """A VM's directory. After the test: no process, no socket, no descriptor more than before."""
    paths = VMPaths(tmp_path / ("long-name-" * 12) / "vm-1")
    paths.qemu.root.mkdir(parents=True)
    for path in (paths.root / "kernel", paths.root / "initramfs", paths.root / "base", paths.overlay):
        path.write_bytes(b"content")
    before = open_files()
    yield paths
    left = processes.holders(process_lock(paths.root, "vmm"))
    processes.kill(ProcessIdentity(process_lock(paths.root, "vmm")))
    assert left == []
    assert list(paths.root.rglob("*.sock")) == []
    assert open_files() == before


def open_files() -> list[str]:
    names = []
    for fd in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            names.append(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")  # noqa: PTH115
        except FileNotFoundError:
            continue  # that of the listing itself
    return sorted(names)


def spec(paths: VMPaths, behaviour: str) -> MachineSpec:
    root = paths.root
    return machine_spec(
        "vm-1",
        kernel=root / "kernel",
        initramfs=root / "initramfs",
        base=root / "base",
        overlay=paths.overlay,
        mem_size_mib=64,
        boot_args=f"fake={behaviour}",
    )


async def launch(paths: VMPaths, behaviour: str, on_spawned: Callable[[int], None] = lambda pid: None) -> QemuMachine:
    return await QemuDriver(NO_KVM, NO_JAIL).launch(
        spec(paths, behaviour), paths.qemu.root, ProcessIdentity(process_lock(paths.root, "vmm")), None, on_spawned
    )


async def run(test: Callable[[], Awaitable[None]]) -> None:
    before = asyncio.all_tasks()
    async with asyncio.timeout(20):
        await test()
    assert asyncio.all_tasks() == before


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


def test_it_is_a_driver() -> None:
    driver: Driver = QemuDriver(NO_KVM, NO_JAIL)
    assert driver.name == "qemu"
    assert driver.accelerator == "tcg"
    assert driver.groups == ()


def test_it_runs_nested_guests_under_emulation_and_where_the_hosts_kvm_allows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(qemu_driver, "_vms_may_open", lambda device: True)
    refusal = NestingProbe(False, "the host's module kvm_amd has nested=0", "modprobe kvm_amd nested=1")
    monkeypatch.setattr(qemu_driver, "probe_nesting", lambda: refusal)
    assert QemuDriver(NO_KVM, NO_JAIL).capabilities.nested
    kvm = QemuDriver(KVMProbe(usable=True, reason="", present=True), NO_JAIL)
    problem = lacking(kvm.capabilities, Needs(nested=True))
    assert problem is not None and problem.text.endswith(f"nested virtualization: {refusal.reason}")
    assert problem.hint == refusal.command
    monkeypatch.setattr(qemu_driver, "probe_nesting", lambda: NestingProbe(True))
    assert lacking(kvm.capabilities, Needs(nested=True)) is None


@pytest.mark.anyio
async def test_a_machine_from_launch_to_kill(paths: VMPaths) -> None:
    async def test() -> None:
        spawned: list[int] = []
        machine: Machine = await launch(paths, "run", spawned.append)
        assert spawned == [machine.pid] == processes.holders(process_lock(paths.root, "vmm"))
        (await machine.connect_agent()).close()
        assert paths.qemu.agent_socket.is_socket()
        await until(lambda: b"squib-agent: ready" in machine.console_tail())
        waiters = [asyncio.create_task(machine.wait()) for _ in range(2)]
        await machine.kill()
        await machine.kill()
        reasons = {*await asyncio.gather(*waiters), await machine.wait()}
        assert [reason.kind for reason in reasons] == [ExitKind.KILLED]

    await run(test)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("behaviour", "kind", "text"),
    [
        ("poweroff", ExitKind.POWERED_OFF, "powered off"),
        ("panic", ExitKind.GUEST_PANICKED, "Attempted to kill init!"),
        ("crash", ExitKind.FAILED, "SIGSEGV"),
    ],
)
async def test_the_end_of_a_machine_and_why(paths: VMPaths, behaviour: str, kind: ExitKind, text: str) -> None:
    async def test() -> None:
        machine = await launch(paths, behaviour)
        reason = await machine.wait()
        assert reason.kind is kind
        assert text in reason.text
        assert list(paths.root.rglob("*.sock")) == []

    await run(test)


@pytest.mark.anyio
async def test_a_vmm_that_ends_at_once(paths: VMPaths) -> None:
    async def test() -> None:
        with pytest.raises(BootFailed, match="QEMU exited with status 1") as caught:
            await launch(paths, "die")
        assert "could not load kernel" in caught.value.detail

    await run(test)


@pytest.mark.anyio
async def test_a_cancelled_launch_leaves_nothing(paths: VMPaths) -> None:
    async def test() -> None:
        task = asyncio.create_task(launch(paths, "hang"))
        await until(lambda: processes.holders(process_lock(paths.root, "vmm")) != [])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert processes.holders(process_lock(paths.root, "vmm")) == []

    await run(test)


@pytest.mark.anyio
async def test_a_vmm_that_does_not_answer_is_killed(paths: VMPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu_driver, "_MONITOR_TIMEOUT_S", 0.05)
    monkeypatch.setattr(qemu_driver, "_END_TIMEOUT_S", 0.05)

    async def test() -> None:
        with pytest.raises(BootFailed, match="did not respond"):
            await launch(paths, "hang")

    await run(test)


@pytest.mark.anyio
async def test_a_caller_that_cannot_take_the_process_ends_it(paths: VMPaths) -> None:
    def refuse(pid: int) -> None:
        raise HostError("no cgroup")

    async def test() -> None:
        with pytest.raises(HostError, match="no cgroup"):
            await launch(paths, "run", refuse)

    await run(test)


@pytest.mark.anyio
@pytest.mark.parametrize("missing", ["kernel", "initramfs", "base", "overlay.ext4"])
async def test_a_file_that_cannot_be_opened_is_named(paths: VMPaths, missing: str) -> None:
    (paths.root / missing).unlink()

    async def test() -> None:
        with pytest.raises(HostError, match=missing):
            await launch(paths, "run")

    await run(test)


@pytest.mark.anyio
async def test_without_qemu(paths: VMPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu_driver, "PROGRAM", "qemu-system-none")

    async def test() -> None:
        with pytest.raises(DependencyMissing, match="qemu-system-none"):
            await launch(paths, "run")
        check, *_ = await QemuDriver(NO_KVM, NO_JAIL).checks()
        assert check.status is CheckStatus.FAIL
        assert check.fix is not None and check.fix.as_root
        assert check.fix.argv[:2] == ("apt-get", "install")

    await run(test)


@pytest.mark.anyio
async def test_one_vmm_of_a_vm_at_a_time(paths: VMPaths) -> None:
    async def test() -> None:
        machine = await launch(paths, "run")
        with pytest.raises(WrongState, match="still running"):
            await launch(paths, "run")
        assert machine.qmp
        assert await machine.qmp.execute("query-status")  # the first one is as it was, and so are its sockets
        assert paths.qemu.agent_socket.is_socket()
        await machine.kill()

    await run(test)


@pytest.mark.anyio
async def test_a_console_log_is_that_of_the_present_boot(paths: VMPaths) -> None:
    async def test() -> None:
        for _ in range(2):
            reason = await (await launch(paths, "panic")).wait()
            assert reason.kind is ExitKind.GUEST_PANICKED
        reason = await (await launch(paths, "poweroff")).wait()
        assert reason.kind is ExitKind.POWERED_OFF
        assert paths.qemu.console_log.read_bytes() == b"squib-agent: ready\r\n"

    await run(test)


@pytest.mark.anyio
async def test_a_detached_machine_goes_on_and_is_adopted(paths: VMPaths) -> None:
    async def test() -> None:
        first = await launch(paths, "run")
        await first.detach()
        assert processes.holders(process_lock(paths.root, "vmm")) == [first.pid]
        second = await QemuDriver(NO_KVM, NO_JAIL).adopt(
            paths.qemu.root, ProcessIdentity(process_lock(paths.root, "vmm"))
        )
        assert second
        assert second.pid == first.pid
        assert second.qmp
        assert await second.qmp.execute("query-status") == {"status": "running"}
        await second.qmp.execute("quit")
        reason = await second.wait()
        assert reason.kind is ExitKind.KILLED
        assert "host-qmp-quit" in reason.text

    await run(test)


@pytest.mark.anyio
async def test_a_machine_whose_engine_ended_before_its_guest_ran_is_ended(paths: VMPaths) -> None:
    """It may not be sealed, so its guest must never run."""

    async def test() -> None:
        first = await launch(paths, "stuck")
        await first.detach()
        assert (
            await QemuDriver(NO_KVM, NO_JAIL).adopt(paths.qemu.root, ProcessIdentity(process_lock(paths.root, "vmm")))
            is None
        )
        assert processes.holders(process_lock(paths.root, "vmm")) == []
        assert list(paths.root.rglob("*.sock")) == []

    await run(test)


@pytest.mark.anyio
async def test_a_machine_that_hangs_is_adopted_all_the_same(paths: VMPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu_driver, "_ADOPT_TIMEOUT_S", 0.05)

    async def test() -> None:
        first = await launch(paths, "run")
        os.kill(first.pid, 19)  # SIGSTOP
        await first.detach()
        second = await QemuDriver(NO_KVM, NO_JAIL).adopt(
            paths.qemu.root, ProcessIdentity(process_lock(paths.root, "vmm"))
        )
        assert second
        assert second.qmp is None
        await second.kill()
        assert (await second.wait()).kind is ExitKind.KILLED

    await run(test)


@pytest.mark.anyio
async def test_a_guest_that_makes_qemu_complain_fills_no_disk_and_blocks_nothing(paths: VMPaths) -> None:
    """Neither while an engine reads, nor without one, nor for the next engine."""

    async def test() -> None:
        machine = await launch(paths, "complain")
        for _ in range(10):
            assert machine.qmp
            await machine.qmp.execute("query-status")
        await machine.detach()
        adopted = await QemuDriver(NO_KVM, NO_JAIL).adopt(
            paths.qemu.root, ProcessIdentity(process_lock(paths.root, "vmm"))
        )
        assert adopted
        assert adopted.qmp
        await adopted.qmp.execute("query-status")
        await until(lambda: b"Guest failure" in logs.tail(paths.qemu.vmm_log))
        await adopted.kill()
        assert sum(path.stat().st_size for path in paths.qemu.root.iterdir()) < 256 * 1024

    await run(test)


@pytest.mark.anyio
async def test_what_qemu_printed_last_is_in_its_log(paths: VMPaths) -> None:
    async def test() -> None:
        reason = await (await launch(paths, "abort")).wait()
        assert reason.kind is ExitKind.FAILED
        assert "Assertion failed" in reason.detail

    await run(test)


@pytest.mark.anyio
async def test_there_is_nothing_to_adopt(paths: VMPaths) -> None:
    paths.qemu.qmp_socket.touch()

    async def test() -> None:
        assert (
            await QemuDriver(NO_KVM, NO_JAIL).adopt(paths.qemu.root, ProcessIdentity(process_lock(paths.root, "vmm")))
            is None
        )
        assert not paths.qemu.qmp_socket.exists()

    await run(test)


@pytest.mark.anyio
async def test_checks(tools: ToolBox) -> None:
    program, acceleration, confinement = await QemuDriver(NO_KVM, NO_JAIL).checks()
    assert program.status is CheckStatus.OK
    assert program.detail.endswith("7.2.22")
    assert acceleration.status is CheckStatus.WARN
    assert NO_KVM.reason in acceleration.detail
    assert "QEMU's security policy does not cover TCG" in acceleration.detail
    assert confinement.status is CheckStatus.WARN
    assert NO_JAIL.reason in confinement.detail


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo QEMU emulator version 6.2.0", "too old"),
        ("[ $1 != --version ] || echo QEMU emulator version 9.0.1", "no machine type q35"),
        ("echo broken >&2; exit 1", "broken"),
    ],
)
async def test_a_qemu_that_will_not_do(tools: ToolBox, script: str, says: str) -> None:
    tools.add("qemu-system-x86_64", script)
    check, *_ = await QemuDriver(NO_KVM, NO_JAIL).checks()
    assert check.status is CheckStatus.FAIL
    assert says in check.detail


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\n", (7, 2, 22)),
        ("QEMU emulator version 10.0.50 (v10.0.0-1-gabc)", (10, 0, 50)),
        ("nothing like it", ()),
    ],
)
def test_versions(text: str, version: tuple[int, ...]) -> None:
    assert parse_version(text) == version


def test_kvm_that_vms_may_not_open_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path / "kvm"
    device.touch(0o600)
    monkeypatch.setattr(qemu_driver, "KVM_DEVICE", device)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    usable = KVMProbe(usable=True, reason="hardware virtualization works", present=True)
    driver = QemuDriver(usable, NO_JAIL)
    assert driver.accelerator == "tcg"
    device.chmod(0o660)
    driver = QemuDriver(usable, NO_JAIL)
    assert driver.accelerator == "kvm"
    assert driver.groups == (device.stat().st_gid,)
    assert driver.memory_overhead_mib(spec(VMPaths(tmp_path), "run")) < 256
