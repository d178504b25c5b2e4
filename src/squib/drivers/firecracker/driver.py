"""Launch Firecracker in its jailer, and adopt the machines of a former engine."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from squib.drivers.base import (
    NO_BZIMAGE,
    Capabilities,
    Disk,
    FreshMemory,
    MachineSpec,
    Problem,
    SavedMemory,
    check_supported,
    unsupported,
)
from squib.drivers.firecracker import plan
from squib.drivers.firecracker.api import ApiClient
from squib.drivers.firecracker.checks import check_all
from squib.drivers.firecracker.machine import (
    READABLE,
    Endpoint,
    FirecrackerMachine,
    Pumps,
    describe,
    unpack_devices,
)
from squib.drivers.firecracker.programs import Programs
from squib.drivers.firecracker.requests import START, Request, configuration, load
from squib.drivers.firecracker.version import (
    CANNOT_RESUME,
    CANNOT_RESUME_BECAUSE,
    KEEPS_NUMBERS_SINCE,
    OTHER_VERSION,
    show_version,
)
from squib.drivers.machine import remove_endpoints
from squib.errors import BootFailed, HostError, InvalidArgument, ToolFailed, WrongState
from squib.host import chroot, jail, logs, processes
from squib.host.files import open_regular
from squib.host.jail import Credentials
from squib.host.locks import FileLock
from squib.host.logs import BoundedLog, LogPump
from squib.host.probe import KVMProbe, host_cpu
from squib.host.processes import Process, ProcessIdentity, describe_exit
from squib.models import Check
from squib.paths import API_SOCKET, FirecrackerPaths
from squib.protocol.text import printable_lines

_HEAP_MIB = 64  # Firecracker uses 5 MiB; the rest is for its threads, its chroot and cached files
_MAX_VCPUS = 32
_API_TIMEOUT_S = 10.0
_ADOPT_TIMEOUT_S = 5.0
_END_TIMEOUT_S = 0.3  # the end of a process is noticed some milliseconds after the end of its connection
_POLL_S = 0.002
_LOG_BYTES = 4096
_CONSOLE_PAUSE_S = 0.002
_OUTPUT_PAUSE_S = 0.05
_VMM_LOG_BYTES, _METRICS_LOG_BYTES = 64 * 1024, 256 * 1024
_ELF = b"\x7fELF"


class FirecrackerDriver:
    """`squib.drivers.base.Driver` for Firecracker. One per engine.

    ``find_programs`` returns Firecracker's programs, or why there are none; the answer may change at any time. ``kvm``
    says whether KVM works, and ``jailer_lacks`` why this engine cannot use the jailer (`checks.jailer_lacks`).
    """

    name = "firecracker"
    accelerator = "kvm"
    groups: tuple[int, ...] = ()
    guest_modules = ("firecracker",)

    def __init__(self, find_programs: Callable[[], Programs | Problem], kvm: KVMProbe, jailer_lacks: str) -> None:
        self._find_programs = find_programs
        self._kvm = kvm
        self._jailer_lacks = jailer_lacks

    @property
    def capabilities(self) -> Capabilities:
        programs = self._find_programs()
        able = Capabilities(no_jailer=True, max_vcpus=_MAX_VCPUS, bzimage=False)
        if isinstance(programs, Problem):
            return able
        if programs.version in CANNOT_RESUME:
            reason = f"Firecracker {show_version(programs.version)} is installed, and {CANNOT_RESUME_BECAUSE}"
            return replace(able, no_save=reason, save_hint=OTHER_VERSION)
        return replace(able, pause=True, save=True)

    def problem(self, *, jailer: bool = True) -> Problem | None:
        found = self._usable_programs(jailer=jailer)
        return found if isinstance(found, Problem) else None

    def _usable_programs(self, *, jailer: bool) -> Programs | Problem:
        """Return the programs, or why no VM can run with them on this host."""
        programs = self._find_programs()
        if isinstance(programs, Problem):
            return programs
        if not self._kvm.usable:
            return Problem(
                f"KVM cannot run a guest here: {self._kvm.reason}",
                hint="use --driver qemu, which works without KVM; squib doctor shows what KVM needs",
            )
        if jailer and self._jailer_lacks:
            return Problem(
                f"its jailer needs {self._jailer_lacks}",
                hint="run the engine as root, or use --driver qemu; for development only: --no-jailer",
            )
        return programs

    def console_log(self, folder: Path) -> Path:
        return FirecrackerPaths(folder).console_log

    def memory_overhead_mib(self, spec: MachineSpec) -> int:
        programs = self._find_programs()
        return _HEAP_MIB + (plan.chroot_size_mib(programs) if isinstance(programs, Programs) else 0)

    async def launch(
        self,
        spec: MachineSpec,
        folder: Path,
        identity: ProcessIdentity,
        credentials: Credentials | None,
        on_spawned: Callable[[int], None],
    ) -> FirecrackerMachine:
        check_supported(self.name, self.capabilities, spec)
        programs = self._usable_programs(jailer=spec.jailer)
        if isinstance(programs, Problem):
            raise unsupported(self.name, programs)
        _check_kernel(self.name, spec.kernel)
        paths = FirecrackerPaths(folder)
        async with contextlib.AsyncExitStack() as undo:
            with FileLock(identity.lock_path) as lock:
                if not lock.try_acquire() or processes.members(identity.cgroups):
                    raise WrongState(f"a VMM of VM {spec.vm_id} is still running", hint=f"squib stop {spec.vm_id}")
                remove_endpoints(paths)  # of a launch that was killed
                undo.callback(remove_endpoints, paths)
                undo.callback(processes.kill, identity)
                _make_pipes(paths, credentials)
                pumps = _open_pumps(paths, undo)
                number = 0
                if isinstance(spec.memory, SavedMemory):
                    number = unpack_devices(spec.memory.devices, paths.devices)
                    spec = replace(spec, memory=replace(spec.memory, devices=paths.devices))
                if spec.jailer:
                    assert credentials is not None  # `problem` requires root, whose VMs have users of their own
                    process = await _jailed(spec, paths, programs, identity, credentials, lock, pumps)
                else:
                    process = await _bare(spec, paths, programs, identity, lock)
            undo.callback(process.forget)
            undo.push_async_callback(process.kill)
            on_spawned(process.pid)
            try:
                endpoint = Endpoint(_open_root(process, paths, jailer=spec.jailer))
                undo.callback(endpoint.close)
                api = ApiClient(endpoint.api)
                undo.callback(api.close)
                await _wait_for_api(endpoint, process)
                for request in _requests(spec, programs):
                    await api.request(request)
                if programs.version < KEEPS_NUMBERS_SINCE:
                    endpoint.skip_numbers(number)
            except (HostError, ToolFailed) as error:
                raise await _launch_failed(process, pumps, paths, error) from error
            undo.pop_all()
            return FirecrackerMachine(process, paths, endpoint, api, pumps)

    async def adopt(self, folder: Path, identity: ProcessIdentity) -> FirecrackerMachine | None:
        paths = FirecrackerPaths(folder)
        process = processes.adopt(identity)
        if process is None:
            remove_endpoints(paths)
            return None
        async with contextlib.AsyncExitStack() as undo:
            undo.callback(process.forget)
            try:
                endpoint = Endpoint(_open_root(process, paths, jailer=not (paths.root / API_SOCKET).exists()))
                undo.callback(endpoint.close)
                pumps = _open_pumps(paths, undo)
            except (HostError, OSError):  # it has ended, or nobody could watch it
                await process.kill()
                remove_endpoints(paths)
                return None
            api = ApiClient(endpoint.api)
            undo.callback(api.close)
            with contextlib.suppress(ToolFailed):  # a Firecracker that hangs can still be waited for and killed
                if await describe(api, "state", timeout_s=_ADOPT_TIMEOUT_S) == "Not started":
                    await process.kill()
                    remove_endpoints(paths)
                    return None
            undo.pop_all()
            return FirecrackerMachine(process, paths, endpoint, api, pumps)

    async def fingerprint(self, spec: MachineSpec) -> dict[str, str]:
        programs = self._find_programs()
        if isinstance(programs, Problem):
            raise unsupported(self.name, programs)
        same = replace(spec, vm_id="vm", memory=FreshMemory(spec.memory.size_mib))
        requests = [asdict(request) for request in _requests(same, programs)]
        return {
            "VMM": f"Firecracker {show_version(programs.version)}",
            "accelerator": self.accelerator,
            "machine": hashlib.sha256(json.dumps(requests).encode()).hexdigest()[:16],
            "host CPU": host_cpu(),
        }

    async def checks(self) -> list[Check]:
        return await asyncio.to_thread(check_all, self._find_programs(), self._kvm, self._jailer_lacks)


def _requests(spec: MachineSpec, programs: Programs) -> list[Request]:
    """Return the requests after which the guest runs, or is paused if it runs from a saved memory."""
    files = plan.guest_files(spec)
    if isinstance(spec.memory, SavedMemory):
        return load(files)
    return [*configuration(spec, files, pci=programs.has_pci), START]


async def _jailed(
    spec: MachineSpec,
    paths: FirecrackerPaths,
    programs: Programs,
    identity: ProcessIdentity,
    credentials: Credentials,
    lock: FileLock,
    pumps: Pumps,
) -> Process:
    """Run the jailer, and return the process of the Firecracker that it started."""
    for path in (spec.kernel, spec.initramfs, *(disk.path for disk in spec.disks if disk.read_only)):
        _check_readable(path)
    if isinstance(spec.memory, SavedMemory):
        _make_readable(spec.memory.memory)
    for disk in spec.disks:
        _give_to_vmm(disk, credentials)
    paths.jail.mkdir(mode=0o700, exist_ok=True)
    wanted = plan.chroot_plan(spec, paths, programs, credentials, identity.cgroups)
    try:
        jailer = await chroot.run(wanted, lock=lock, log_path=paths.log_pipe, stdout_path=paths.console_pipe)
    except HostError as error:
        raise BootFailed(error.message, detail=_log_end(pumps, paths)) from error
    if jailer.returncode:
        text = f"Firecracker's jailer {describe_exit(jailer.returncode)}"
        raise BootFailed(text, detail=_log_end(pumps, paths))
    process = processes.adopt_member(identity.cgroups)
    if process is None:
        raise BootFailed("Firecracker ended before it opened its API", detail=_log_end(pumps, paths))
    return process


async def _bare(
    spec: MachineSpec, paths: FirecrackerPaths, programs: Programs, identity: ProcessIdentity, lock: FileLock
) -> Process:
    """Start Firecracker without its jailer."""
    for file in plan.shared_files(spec, paths):
        link = paths.root / file.name
        link.unlink(missing_ok=True)
        link.symlink_to(file.source)
    wanted = plan.bare_plan(spec, paths, programs, identity.cgroups)
    confined = await jail.start(wanted, lock=lock, log_path=paths.log_pipe, stdout_path=paths.console_pipe)
    await confined.seal()
    return confined.process


def _check_kernel(driver: str, path: Path) -> None:
    """Check that a kernel is not compressed. Raises `Unsupported`."""
    with open_regular(path) as kernel:
        if kernel.read(len(_ELF)) != _ELF:
            raise unsupported(driver, NO_BZIMAGE)


def _check_readable(path: Path) -> None:
    """Check that every user may read a file that VMs share. Raises `InvalidArgument`."""
    if not path.stat().st_mode & stat.S_IROTH:
        raise InvalidArgument(f"the VM's own user cannot read {path}", hint=f"chmod o+r {path}, or use --driver qemu")


def _make_readable(memory: Path) -> None:
    """Let every user read a saved memory. Others cannot reach it: its directory is private. Raises `HostError`."""
    try:
        if not memory.stat().st_mode & stat.S_IROTH:  # it is a copy, on another disk; else leave its times alone
            memory.chmod(READABLE)
    except OSError as error:
        raise HostError(f"{memory} cannot be read: {error.strerror}") from error


def _give_to_vmm(disk: Disk, credentials: Credentials) -> None:
    """Let Firecracker's user write to a disk. Others cannot reach it: its directory is private."""
    if not disk.read_only:
        os.chown(disk.path, credentials.uid, credentials.gid)


def _make_pipes(paths: FirecrackerPaths, credentials: Credentials | None) -> None:
    """Create the pipes for what Firecracker prints."""
    for path in (paths.console_pipe, paths.log_pipe, paths.metrics_pipe):
        logs.make_pipe(path)
        if credentials:
            os.chown(path, credentials.uid, credentials.gid)
    for path in (paths.console_log, paths.vmm_log, paths.metrics_log):
        logs.remove(path)


def _open_pumps(paths: FirecrackerPaths, undo: contextlib.AsyncExitStack) -> Pumps:
    """Start copying what arrives on the pipes into logs. Raises `OSError`."""

    def pump(pipe: Path, log: BoundedLog, pause_s: float) -> LogPump:
        opened = logs.pump_pipe(pipe, log, pause_s=pause_s)
        undo.callback(opened.close)
        return opened

    return Pumps(
        console=pump(paths.console_pipe, BoundedLog(paths.console_log), _CONSOLE_PAUSE_S),
        log=pump(paths.log_pipe, BoundedLog(paths.vmm_log, _VMM_LOG_BYTES), _OUTPUT_PAUSE_S),
        metrics=pump(paths.metrics_pipe, BoundedLog(paths.metrics_log, _METRICS_LOG_BYTES), _OUTPUT_PAUSE_S),
    )


def _open_root(process: Process, paths: FirecrackerPaths, *, jailer: bool) -> int:
    """Open the directory with Firecracker's sockets: its root, or without a jailer the driver's directory.

    Raises `HostError` if Firecracker has ended.
    """
    path = Path(f"/proc/{process.pid}/root") if jailer else paths.root
    try:
        folder = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"Firecracker ended before it opened its sockets: {error.strerror}") from error
    if process.has_ended():  # the pid may be another process's by now
        os.close(folder)
        raise HostError("Firecracker ended before it opened its sockets")
    return folder


async def _wait_for_api(endpoint: Endpoint, process: Process) -> None:
    """Wait until the API's socket exists and accepts connections.

    Raises `HostError` if Firecracker ends, or does not open it in time.
    """
    try:
        async with asyncio.timeout(_API_TIMEOUT_S):
            while process.running:
                with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                    endpoint.api().close()
                    return
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise HostError(f"Firecracker did not open its API within {_API_TIMEOUT_S:g} s") from None
    raise HostError("Firecracker ended before it opened its API")


async def _launch_failed(
    process: Process, pumps: Pumps, paths: FirecrackerPaths, error: HostError | ToolFailed
) -> BootFailed:
    """Return the error for a Firecracker that was launched but runs no guest.

    Its detail is the end of Firecracker's log.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_END_TIMEOUT_S):
            await process.wait()
    log_end = _log_end(pumps, paths)
    if process.running:
        return BootFailed(error.message, detail=log_end)
    return BootFailed(f"Firecracker {describe_exit(process.returncode)} before the guest ran", detail=log_end)


def _log_end(pumps: Pumps, paths: FirecrackerPaths) -> str:
    pumps.close()
    return printable_lines(logs.tail(paths.vmm_log, _LOG_BYTES).decode(errors="replace")).strip()
