"""The interface of VMM drivers: plain values in, a running machine out.

A driver does not know about images, agents, databases or limits. `squib.core` creates the overlay and the cgroup,
passes paths to the driver, and talks to the agent over `Machine.connect_agent`.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from squib.errors import Unsupported
from squib.host.jail import Credentials
from squib.host.processes import ProcessIdentity
from squib.models import Check


@dataclass(frozen=True)
class FreshMemory:
    """Guest memory that is zeroed when the VM starts."""

    size_mib: int


@dataclass(frozen=True)
class SavedMemory:
    """The saved state of a guest (`Machine.save`), from which the machine goes on: its memory and its devices.

    The files are never changed: the memory is mapped copy-on-write. After `Driver.launch` the guest is paused.
    """

    size_mib: int
    memory: Path
    devices: Path


Complete = Callable[[], Awaitable[None]]
"""Adds to a saved memory what `Machine.save` has left out: what the guest shares with the state that it runs from.

The guest may run meanwhile, and the machine may have ended. Raises `DiskFull`, `HostError`.
"""


@dataclass(frozen=True)
class Disk:
    """A raw disk image or filesystem.

    The agent finds it by its serial number ``squib-<name>``, or by its device on the kernel's command line.
    """

    name: str
    path: Path
    read_only: bool


@dataclass(frozen=True)
class Nic:
    """A network card, connected to the host's tap device ``tap``."""

    tap: str
    mac: str


@dataclass(frozen=True)
class MachineSpec:
    """A VM as a VMM sees it.

    A jailed VMM has no access to the paths: it inherits open files, or gets the files in its chroot.

    ``boot_args`` is appended to the driver's kernel command line. ``nested``: the guest's CPU has the extensions for
    running VMs. ``jailer``: the VMM runs in its jail; ``False`` is for development only.
    """

    vm_id: str
    vcpu_count: int
    memory: FreshMemory | SavedMemory
    kernel: Path
    initramfs: Path
    disks: tuple[Disk, ...]
    nics: tuple[Nic, ...] = ()
    boot_args: str = ""
    nested: bool = False
    jailer: bool = True


@dataclass(frozen=True)
class Capabilities:
    """What a driver supports in addition to running a guest with disks.

    ``save``: its machines can be saved, and run again from that.

    If ``nested`` is false, ``no_nested`` may say why, and ``nested_hint`` the command that enables it; likewise
    ``no_save`` and ``save_hint``. ``no_jailer``: it can run a VMM without its jail, for development. ``max_vcpus`` is
    the largest number of virtual CPUs. ``bzimage``: it boots compressed kernels too, not only ELF ones.
    """

    pause: bool = False
    save: bool = False
    no_save: str = ""
    save_hint: str = ""
    nics: bool = False
    nested: bool = False
    no_nested: str = ""
    nested_hint: str = ""
    no_jailer: bool = False
    max_vcpus: int = 64
    bzimage: bool = True


@dataclass(frozen=True)
class Problem:
    """Why a driver cannot run VMs on this host. ``hint`` is what to do."""

    text: str
    hint: str = "squib doctor"


@dataclass(frozen=True)
class Needs:
    """What a VM needs of its driver besides a guest with disks."""

    jailer: bool = True
    nested: bool = False
    vcpu_count: int = 1
    bzimage: bool = False


NO_BZIMAGE = Problem("it boots only uncompressed ELF kernels", hint="use a vmlinux, or --driver qemu")


def lacking(capabilities: Capabilities, needs: Needs) -> Problem | None:
    """Return which of a VM's ``needs`` a driver does not meet; ``None`` if it meets all."""
    if needs.nested and not capabilities.nested:
        reason = f": {capabilities.no_nested}" if capabilities.no_nested else ""
        return Problem(f"it does not support nested virtualization{reason}", hint=capabilities.nested_hint)
    if not needs.jailer and not capabilities.no_jailer:
        return Problem("its VMs always run in squib's jail", hint="leave out --no-jailer")
    if needs.vcpu_count > capabilities.max_vcpus:
        text = f"it supports at most {capabilities.max_vcpus} CPUs, not {needs.vcpu_count}"
        return Problem(text, hint="use fewer CPUs or another driver")
    if needs.bzimage and not capabilities.bzimage:
        return NO_BZIMAGE
    return None


def check_supported(driver: str, capabilities: Capabilities, spec: MachineSpec) -> None:
    """Check that the driver supports the features of ``spec``.

    Raises `Unsupported` for the first one that it lacks.
    """
    if isinstance(spec.memory, SavedMemory) and not capabilities.save:
        raise Unsupported(f"the driver {driver} does not run VMs from a saved state")
    if spec.nics and not capabilities.nics:
        raise Unsupported(f"the driver {driver} does not support network cards")
    if problem := lacking(capabilities, Needs(spec.jailer, spec.nested, spec.vcpu_count)):
        raise unsupported(driver, problem)


def unsupported(driver: str, problem: Problem) -> Unsupported:
    """Return the error for a VM that a driver cannot run."""
    return Unsupported(f"the driver {driver} cannot run this VM: {problem.text}", hint=problem.hint)


class ExitKind(StrEnum):
    """Why a VMM ended."""

    POWERED_OFF = "powered_off"
    GUEST_REBOOTED = "guest_rebooted"
    GUEST_PANICKED = "guest_panicked"
    KILLED = "killed"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class ExitReason:
    """Why a VMM ended.

    ``text`` is one sentence; ``detail`` is the end of the log that explains it, or empty.

    Both are printable text, although they may quote the guest (`squib.protocol.text`).
    """

    kind: ExitKind
    text: str
    detail: str = ""


class Machine(Protocol):
    """A VMM process and this engine's connections to it."""

    @property
    def pid(self) -> int: ...

    async def connect_agent(self) -> socket.socket:
        """Connect to the guest agent's byte stream.

        Returns a connected, non-blocking stream socket, which the caller closes. A new connection replaces an older
        one.

        Raises `OSError` or `AgentLost` if there is nothing to connect to.
        """

    async def wait(self) -> ExitReason:
        """Wait until the VMM has ended, and return why.

        Its sockets are then removed, and its last output is in the logs. Can be called several times, also after the
        end.
        """

    async def pause(self) -> None:
        """Stop the vCPUs.

        Idempotent.

        Raises `ToolFailed` if the VMM does not answer, `Unsupported` if it could not be resumed.
        """

    async def resume(self) -> None:
        """Let the vCPUs run.

        Idempotent.

        Raises `ToolFailed` if the VMM does not answer.
        """

    async def is_paused(self) -> bool:
        """Ask the VMM whether the vCPUs are stopped.

        Raises `ToolFailed` if the VMM does not answer.
        """

    async def save(self, memory: Path, devices: Path, *, size_mib: int) -> Complete:
        """Write the state of a paused guest with ``size_mib`` of memory to two new files, for `SavedMemory`.

        The memory is a sparse file. If this machine runs from a `SavedMemory`, the file has only the pages that the
        guest has written since; call the returned function to add the others. The guest stays paused.

        Raises `Unsupported` without the capability, `DiskFull`, `HostError`, and `ToolFailed` if the VMM does not
        answer.
        """

    async def kill(self) -> None:
        """Kill the VMM and return when it has ended, as `wait` does.

        Idempotent.

        The guest is not shut down, so data in its page cache is lost.
        """

    async def detach(self) -> None:
        """Close this engine's connections and stop watching.

        The VMM keeps running. Do not use the object again.
        """

    def console_tail(self, max_bytes: int = ..., *, lines: int | None = ...) -> bytes:
        """Return the end of the guest's console.

        It has at most ``max_bytes`` bytes and at most ``lines`` lines.
        """


class Driver(Protocol):
    """A kind of VMM on this host."""

    @property
    def name(self) -> str: ...

    @property
    def accelerator(self) -> str:
        """What executes guest code: ``kvm``, or ``tcg`` (QEMU's emulation)."""

    @property
    def groups(self) -> tuple[int, ...]:
        """The supplementary groups for a VMM, such as ``/dev/kvm``'s."""

    @property
    def guest_modules(self) -> tuple[str, ...]:
        """The sets of kernel modules (`squib.kernels.modules.EXTRA_MODULES`) that its devices need."""

    @property
    def capabilities(self) -> Capabilities: ...

    async def fingerprint(self, spec: MachineSpec) -> dict[str, str]:
        """Return what two machines have in common if one can run from the other's saved state, by words for users.

        It covers this host, the VMM and the machine, but not the content of files.

        Raises `Unsupported` without the capability `Capabilities.save`, `DependencyMissing`.
        """

    def problem(self, *, jailer: bool = True) -> Problem | None:
        """Return why no VM can run on this host, with its jail or without; ``None`` if VMs can."""

    def console_log(self, folder: Path) -> Path:
        """Return the path of the console log in ``folder``.

        The log is rotated (`squib.host.logs`).
        """

    def memory_overhead_mib(self, spec: MachineSpec) -> int:
        """Return how many MiB the VMM needs beyond the guest's memory.

        A VM's memory limit covers both.
        """

    async def checks(self) -> list[Check]:
        """Return the checks of this driver for `squib doctor`."""

    async def launch(
        self,
        spec: MachineSpec,
        folder: Path,
        identity: ProcessIdentity,
        credentials: Credentials | None,
        on_spawned: Callable[[int], None],
    ) -> Machine:
        """Start a VMM; return when it runs the guest, or is ready to `Machine.resume` it from a `SavedMemory`.

        ``folder`` is the driver's own directory for this VM; the driver keeps all its files there. From its start, the
        VMM holds the lock of ``identity`` or is in its cgroups, and both if possible. ``credentials`` are the user that
        it runs as (default: the engine's user). ``on_spawned`` is called with the pid as soon as the process exists,
        before the guest runs; an exception in it aborts the launch. An error or a cancellation leaves no process and no
        socket.

        Raises `Unsupported`, `WrongState` if a VMM of this VM is still running, `DependencyMissing`, `HostError`, and
        `BootFailed` with the end of the VMM's log if the VMM ends at once or does not respond.
        """

    async def adopt(self, folder: Path, identity: ProcessIdentity) -> Machine | None:
        """Take over the VMM that a former engine launched with ``folder``.

        ``identity`` identifies the VMM's process. Returns ``None`` if it has ended.
        """
