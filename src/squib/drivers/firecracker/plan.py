"""Plan how Firecracker is started: in its jailer, or for development without it.

Nothing is changed, and of files only the sizes are read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from squib.drivers.base import MachineSpec, SavedMemory
from squib.drivers.firecracker.programs import Programs
from squib.drivers.firecracker.requests import GuestFiles
from squib.host.chroot import ChrootPlan, SharedFile
from squib.host.jail import Credentials, JailMode, Plan
from squib.paths import AGENT_SOCKET, API_SOCKET, FirecrackerPaths

LOG, METRICS = "log", "metrics"
"""Names of the pipes in the chroot."""
_KERNEL, _INITRAMFS, _DISK = "kernel", "initramfs", "disk-"
_MEMORY, _DEVICES = "memory", "devices"
_CHROOT_MIB = 2
"""What a chroot holds besides the copy of Firecracker that its jailer makes."""
_MAX_FILES = 2048
"""Open files of a Firecracker. Each connection to the guest's vsock takes one; it allows 1023."""


def chroot_plan(
    spec: MachineSpec, paths: FirecrackerPaths, programs: Programs, credentials: Credentials, cgroups: Sequence[Path]
) -> ChrootPlan:
    """Plan a Firecracker in its jailer, as the user of ``credentials``."""
    name = programs.vmm.name
    argv = (
        programs.jailer.name,
        "--id", instance_id(spec.vm_id),
        "--exec-file", str(programs.vmm),
        "--uid", str(credentials.uid),
        "--gid", str(credentials.gid),
        "--chroot-base-dir", str(paths.jail),
        "--new-pid-ns",
        "--resource-limit", f"no-file={_MAX_FILES}",
        "--resource-limit", f"fsize={_max_file_bytes(spec)}",
        "--",
        *_arguments(programs, log=f"/{LOG}", api_socket=f"/{API_SOCKET}"),
    )  # fmt: skip
    return ChrootPlan(
        program=str(programs.jailer),
        argv=argv,
        base=str(paths.jail),
        root=str(paths.jail / name / instance_id(spec.vm_id) / "root"),
        size_mib=chroot_size_mib(programs),
        files=shared_files(spec, paths),
        cgroups=tuple(map(str, cgroups)),
    )


def instance_id(vm_id: str) -> str:
    """Return Firecracker's name of a VM, which has only letters, digits and ``-``. It need not be unique."""
    return re.sub("[^A-Za-z0-9-]", "-", vm_id)


def shared_files(spec: MachineSpec, paths: FirecrackerPaths) -> tuple[SharedFile, ...]:
    """Return the host's files that Firecracker opens, with their names in its root.

    These are the same for all VMs: a saved state holds the names of disks and sockets.
    """
    saved: tuple[SharedFile, ...] = ()
    if isinstance(spec.memory, SavedMemory):
        saved = (
            SharedFile(str(spec.memory.memory), _MEMORY, read_only=True),
            SharedFile(str(spec.memory.devices), _DEVICES, read_only=True),
        )
    return (
        SharedFile(str(spec.kernel), _KERNEL, read_only=True),
        SharedFile(str(spec.initramfs), _INITRAMFS, read_only=True),
        *(SharedFile(str(disk.path), _DISK + disk.name, read_only=disk.read_only) for disk in spec.disks),
        *saved,
        SharedFile(str(paths.log_pipe), LOG, read_only=False),
        SharedFile(str(paths.metrics_pipe), METRICS, read_only=False),
    )


def guest_files(spec: MachineSpec) -> GuestFiles:
    """Return the paths by which Firecracker opens a machine's files.

    In its jail they are in its root directory, without it in its working directory.
    """
    root = "/" if spec.jailer else ""
    return GuestFiles(
        kernel=root + _KERNEL,
        initramfs=root + _INITRAMFS,
        disks=tuple(f"{root}{_DISK}{disk.name}" for disk in spec.disks),
        agent_socket=root + AGENT_SOCKET,
        metrics=root + METRICS,
        memory=root + _MEMORY,
        devices=root + _DEVICES,
    )


def chroot_size_mib(programs: Programs) -> int:
    """Return the size of a chroot: the jailer copies Firecracker into it."""
    return _CHROOT_MIB + -(-programs.vmm.stat().st_size >> 20)


def bare_plan(spec: MachineSpec, paths: FirecrackerPaths, programs: Programs, cgroups: Sequence[Path]) -> Plan:
    """Plan a Firecracker without its jailer, as the engine's user.

    Its sockets are in the driver's directory, by names that fit into a socket's address. Links there lead to its files.
    """
    arguments = _arguments(programs, log=str(paths.log_pipe), api_socket=API_SOCKET)
    argv = (programs.vmm.name, "--id", instance_id(spec.vm_id), *arguments)
    return Plan(JailMode.NONE.value, str(programs.vmm), argv, tuple(map(str, cgroups)), cwd=str(paths.root))


def _arguments(programs: Programs, *, log: str, api_socket: str) -> list[str]:
    pci = ["--enable-pci"] if programs.has_pci else []
    return ["--api-sock", api_socket, "--log-path", log, "--level", "Info", *pci]


def _max_file_bytes(spec: MachineSpec) -> int:
    """Return the size of the largest file that Firecracker writes to: a disk, or a file in its chroot."""
    return max(_CHROOT_MIB << 20, *(disk.path.stat().st_size for disk in spec.disks if not disk.read_only))
