"""Launch QEMU, and adopt the machines of a former engine."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from squib.artifacts.stamp import Stamp
from squib.drivers.base import Capabilities, FreshMemory, MachineSpec, Problem, check_supported
from squib.drivers.machine import remove_endpoints
from squib.drivers.qemu import console
from squib.drivers.qemu.command import Acceleration, Descriptors, command_line
from squib.drivers.qemu.machine import QemuMachine
from squib.drivers.qemu.memories import LoadingMemory, SavedMemories
from squib.drivers.qemu.qmp import QMP, TIMEOUT_S
from squib.errors import BootFailed, DependencyMissing, HostError, ToolFailed, WrongState
from squib.host import jail, logs, memory, proc, processes, sockets
from squib.host.jail import Credentials, Jail
from squib.host.locks import FileLock
from squib.host.logs import LogPump
from squib.host.probe import KVM_DEVICE, KVMProbe, NestingProbe, access_fix, host_cpu, probe_nesting
from squib.host.processes import Process, ProcessIdentity, describe_exit
from squib.models import Check, CheckStatus, Fix
from squib.paths import QemuPaths
from squib.protocol.text import printable_lines

PROGRAM = "qemu-system-x86_64"
MINIMUM_VERSION = (7, 2)
_HEAP_MIB = 128  # QEMU uses 25 MiB after a boot; the rest is for threads, requests and cached files
_MONITOR_TIMEOUT_S = 20.0  # QEMU sends its greeting within 0.1 s on an idle host
_ADOPT_TIMEOUT_S = 5.0
_END_TIMEOUT_S = 2.0
_LOADED_POLL_S = 0.001
_TOOL_TIMEOUT_S = 10.0
_LOG_BYTES = 4096
_TCG_BOUNDARY = (
    "QEMU's security policy does not cover TCG: only the VMM's confinement (its user, seccomp filter, cgroup and jail) "
    "separates the guest from the host."
)
_INSTALL = Fix(argv=("apt-get", "install", "--no-install-recommends", "qemu-system-x86"), as_root=True)


class QemuDriver:
    """`squib.drivers.base.Driver` for QEMU. One per engine.

    ``probe`` selects KVM or TCG. ``confinement`` is the kind of jail that its VMMs run in.
    """

    name = "qemu"
    guest_modules: tuple[str, ...] = ()

    def __init__(self, probe: KVMProbe, confinement: Jail) -> None:
        if probe.usable and not _vms_may_open(KVM_DEVICE):
            command = f"chgrp kvm {KVM_DEVICE} && chmod 660 {KVM_DEVICE}"
            reason = f"only root may open {KVM_DEVICE}, and VMs do not run as root ({command})"
            probe = KVMProbe(usable=False, reason=reason, present=True)
        self._probe = probe
        self._jail = confinement
        self._acceleration = Acceleration(kvm=probe.usable)
        self._saved = SavedMemories()
        self._known_version: tuple[Stamp, tuple[int, ...]] | None = None

    @property
    def capabilities(self) -> Capabilities:
        # A host's module may be loaded anew, with another parameter, while the engine runs.
        nesting = probe_nesting() if self._acceleration.kvm else NestingProbe(True)
        return Capabilities(
            pause=True, save=True, nested=nesting.usable, no_nested=nesting.reason, nested_hint=nesting.command
        )

    async def fingerprint(self, spec: MachineSpec) -> dict[str, str]:
        # Releases of one series load each other's states.
        series = ".".join(map(str, (await self._version())[:2]))
        memory = FreshMemory(spec.memory.size_mib)
        argv = command_line(
            replace(spec, vm_id="vm", memory=memory), Descriptors(0, 0, (0,) * len(spec.disks), 0, 0, 0, 0),
            self._acceleration, program=PROGRAM,
        )  # fmt: skip
        machine = hashlib.sha256(json.dumps(argv).encode()).hexdigest()[:16]
        same = {"VMM": f"QEMU {series}", "accelerator": self.accelerator, "machine": machine}
        return same | ({"host CPU": host_cpu()} if self._acceleration.kvm else {})

    async def _version(self) -> tuple[int, ...]:
        program = proc.find_tool(PROGRAM)
        stamp = Stamp.of(program)
        if self._known_version is None or self._known_version[0] != stamp:
            found = await proc.run([PROGRAM, "--version"], timeout_s=_TOOL_TIMEOUT_S)
            self._known_version = (stamp, parse_version(found.stdout.decode()))
        return self._known_version[1]

    @property
    def accelerator(self) -> str:
        return "kvm" if self._acceleration.kvm else "tcg"

    @property
    def groups(self) -> tuple[int, ...]:
        return (KVM_DEVICE.stat().st_gid,) if self._acceleration.kvm else ()

    def problem(self, *, jailer: bool = True) -> Problem | None:
        return None

    def console_log(self, folder: Path) -> Path:
        return QemuPaths(folder).console_log

    def memory_overhead_mib(self, spec: MachineSpec) -> int:
        return _HEAP_MIB + (0 if self._acceleration.kvm else self._acceleration.tb_size_mib)

    async def launch(
        self,
        spec: MachineSpec,
        folder: Path,
        identity: ProcessIdentity,
        credentials: Credentials | None,
        on_spawned: Callable[[int], None],
    ) -> QemuMachine:
        check_supported(self.name, self.capabilities, spec)
        paths = QemuPaths(folder)
        async with contextlib.AsyncExitStack() as undo:
            with contextlib.ExitStack() as opened:  # QEMU inherits these files
                lock = opened.enter_context(FileLock(identity.lock_path))
                if not lock.try_acquire():
                    raise WrongState(f"a VMM of VM {spec.vm_id} is still running", hint=f"squib stop {spec.vm_id}")
                undo.callback(remove_endpoints, paths)
                undo.callback(processes.kill, identity)
                fds, loading = self._open(spec, paths, opened, private=credentials is not None)
                argv = command_line(spec, fds, self._acceleration, program=PROGRAM)
                # QEMU discards output while no client is connected, so connect before it starts.
                connection = undo.enter_context(sockets.connect(paths.console_socket))
                plan = jail.plan(
                    self._jail, argv, cgroups=identity.cgroups, credentials=credentials, devices=self._devices()
                )
                logs.make_pipe(paths.output_pipe)
                logs.remove(paths.vmm_log)
                output = console.pump_output(paths)
                undo.callback(output.close)
                confined = await jail.start(plan, lock=lock, pass_fds=fds.all(), log_path=paths.output_pipe)
                undo.push_async_callback(confined.kill)
                on_spawned(confined.process.pid)
            logs.remove(paths.console_log)
            serial = console.pump_console(connection, paths)
            undo.callback(serial.close)
            if loading:
                await loading.loaded()  # while QEMU starts
            try:
                qmp = await QMP.connect(paths.qmp_socket, timeout_s=_MONITOR_TIMEOUT_S)
                undo.callback(qmp.close)
                if fds.devices is not None:
                    await _load_devices(qmp, fds.devices)
                await confined.seal()
                if isinstance(spec.memory, FreshMemory):
                    await qmp.execute("cont")
            except (HostError, ToolFailed) as error:
                raise await _launch_failed(confined.process, output, paths, error) from error
            undo.pop_all()
            return QemuMachine(confined.process, paths, qmp, serial, output)

    def _open(
        self, spec: MachineSpec, paths: QemuPaths, opened: contextlib.ExitStack, *, private: bool
    ) -> tuple[Descriptors, LoadingMemory | None]:
        """Open and create the files that QEMU inherits; return them, and its memory if that is still being loaded.

        ``private``: QEMU runs as another user than this process.
        """
        if isinstance(spec.memory, FreshMemory):
            fd = memory.fresh(spec.memory.size_mib << 20)
            opened.callback(os.close, fd)
            return _open(spec, paths, opened, fd, private=private), None
        loading = self._saved.open(spec.memory.memory)
        fd = loading.memfd.fileno()
        return _open(spec, paths, opened, fd, devices=spec.memory.devices, private=private), loading

    def _devices(self) -> tuple[str, ...]:
        return (str(KVM_DEVICE),) if self._acceleration.kvm else ()

    async def adopt(self, folder: Path, identity: ProcessIdentity) -> QemuMachine | None:
        paths = QemuPaths(folder)
        process = processes.adopt(identity)
        if process is None:
            remove_endpoints(paths)
            return None
        async with contextlib.AsyncExitStack() as undo:
            undo.callback(process.forget)
            qmp, serial, output = None, None, None
            with contextlib.suppress(ToolFailed):  # a QEMU that hangs can still be waited for and killed
                qmp = await QMP.connect(paths.qmp_socket, timeout_s=_ADOPT_TIMEOUT_S)
                undo.callback(qmp.close)
                if await _never_ran(qmp):
                    await process.kill()
                    remove_endpoints(paths)
                    return None
            with contextlib.suppress(OSError):
                serial = console.pump_console(sockets.connect(paths.console_socket), paths)
            with contextlib.suppress(OSError):
                output = console.pump_output(paths)
            undo.pop_all()
            return QemuMachine(process, paths, qmp, serial, output)

    async def checks(self) -> list[Check]:
        return [await _program_check(), self._acceleration_check(), jail.check(self._jail)]

    def _acceleration_check(self) -> Check:
        if self._acceleration.kvm:
            return Check(name="acceleration", status=CheckStatus.OK, detail=f"KVM: {self._probe.reason}")
        fix = access_fix(KVM_DEVICE) if self._probe.present else None
        slower = "TCG emulation: VMs work, but several times slower than with KVM."
        detail = f"{slower} {_TCG_BOUNDARY} No KVM: {self._probe.reason}"
        return Check(name="acceleration", status=CheckStatus.WARN, detail=detail, fix=fix)


def _vms_may_open(device: Path) -> bool:
    """Return whether VMMs, with the device's group, may open ``device``.

    If the engine runs as root, VMMs have their own users.
    """
    mode = device.stat().st_mode
    return os.geteuid() != 0 or mode & 0o060 == 0o060 or mode & 0o006 == 0o006


def _open(
    spec: MachineSpec,
    paths: QemuPaths,
    opened: contextlib.ExitStack,
    memory_fd: int,
    *,
    private: bool,
    devices: Path | None = None,
) -> Descriptors:

    def file(path: Path, flags: int) -> int:
        try:
            fd = os.open(path, flags | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(f"{path} cannot be opened: {error.strerror}") from error
        opened.callback(os.close, fd)
        return fd

    def listener(path: Path) -> int:
        return opened.enter_context(sockets.listen(path)).fileno()

    def reopenable(path: Path) -> int:
        fd = file(path, os.O_RDONLY)
        if not private or os.fstat(fd).st_mode & stat.S_IROTH:
            return fd
        return _memory_copy(fd, path.name, opened)

    return Descriptors(
        kernel=reopenable(spec.kernel),
        initramfs=reopenable(spec.initramfs),
        disks=tuple(file(disk.path, os.O_RDONLY if disk.read_only else os.O_RDWR) for disk in spec.disks),
        memory=memory_fd,
        qmp=listener(paths.qmp_socket),
        agent=listener(paths.agent_socket),
        console=listener(paths.console_socket),
        devices=file(devices, os.O_RDONLY) if devices else None,
    )


def _memory_copy(source: int, name: str, opened: contextlib.ExitStack) -> int:
    """Copy a file into a memfd.

    QEMU opens the descriptor again as another user, who may not open the file itself.
    """
    fd = os.memfd_create(name[:200], os.MFD_CLOEXEC)
    opened.callback(os.close, fd)
    with open(source, "rb", closefd=False) as src, open(fd, "wb", closefd=False) as dst:
        shutil.copyfileobj(src, dst, 1 << 20)
    return fd


async def _load_devices(qmp: QMP, fd: int) -> None:
    """Let QEMU load the saved state of its devices from a descriptor that it has inherited, and wait for that.

    Raises `ToolFailed` if QEMU ends, as it does if it cannot load them, or if that takes too long.
    """
    await qmp.execute("migrate-incoming", {"uri": f"fd:{fd}"})
    try:
        async with asyncio.timeout(_MONITOR_TIMEOUT_S):
            while await _status(qmp) == "inmigrate":
                await asyncio.sleep(_LOADED_POLL_S)
    except TimeoutError:
        raise ToolFailed(f"QEMU did not load the saved state within {_MONITOR_TIMEOUT_S:g} s") from None


async def _status(qmp: QMP, *, timeout_s: float = TIMEOUT_S) -> object:
    status = await qmp.execute("query-status", timeout_s=timeout_s)
    return status.get("status") if isinstance(status, dict) else None


async def _never_ran(qmp: QMP) -> bool:
    """Return whether the former engine ended before the guest ran.

    The guest runs after the seal.
    """
    return await _status(qmp, timeout_s=_ADOPT_TIMEOUT_S) in ("prelaunch", "inmigrate")


async def _launch_failed(
    process: Process, output: LogPump, paths: QemuPaths, error: HostError | ToolFailed
) -> BootFailed:
    """Return the error for a QEMU that was launched but runs no guest.

    Its detail is the end of QEMU's log.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_END_TIMEOUT_S):
            await process.wait()
    output.close()
    log_end = printable_lines(logs.tail(paths.vmm_log, _LOG_BYTES).decode(errors="replace")).strip()
    if process.running:
        return BootFailed(error.message, detail=log_end)
    return BootFailed(f"QEMU {describe_exit(process.returncode)} before the guest ran", detail=log_end)


async def _program_check() -> Check:
    """Check QEMU: installed, new enough, and with the machine type q35."""
    name = "qemu"
    try:
        version = (await proc.run([PROGRAM, "--version"], timeout_s=_TOOL_TIMEOUT_S)).stdout.decode()
        machines = (await proc.run([PROGRAM, "-M", "help"], timeout_s=_TOOL_TIMEOUT_S)).stdout.decode()
    except DependencyMissing as error:
        return Check(name=name, status=CheckStatus.FAIL, detail=error.message, fix=_INSTALL)
    except ToolFailed as error:
        return Check(name=name, status=CheckStatus.FAIL, detail=f"{error.message}: {error.detail}", fix=_INSTALL)
    found = parse_version(version)
    wanted = ".".join(map(str, MINIMUM_VERSION))
    if found < MINIMUM_VERSION:
        detail = f"{PROGRAM} is too old: {version.splitlines()[0]}; squib needs {wanted} or newer"
        return Check(name=name, status=CheckStatus.FAIL, detail=detail)
    if not re.search(r"^q35 ", machines, re.MULTILINE):
        return Check(name=name, status=CheckStatus.FAIL, detail=f"{PROGRAM} has no machine type q35", fix=_INSTALL)
    return Check(name=name, status=CheckStatus.OK, detail=f"{proc.find_tool(PROGRAM)} {'.'.join(map(str, found))}")


def parse_version(text: str) -> tuple[int, ...]:
    """Return the version in the output of ``qemu --version``, else empty."""
    found = re.search(r"version (\d+(?:\.\d+)*)", text)
    return tuple(map(int, found[1].split("."))) if found else ()
