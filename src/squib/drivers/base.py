"""What a VMM driver is. Values in, a running machine out.

A driver knows nothing of images, agents, databases or limits. `squib.core` composes: it makes the overlay and the
cgroup, gives paths, and talks to the agent over `Machine.connect_agent`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
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
    """Guest memory that starts out zeroed."""

    size_mib: int


@dataclass(frozen=True)
class MappedMemory:
    """Guest memory that is a file, mapped copy-on-write: the file is never written to."""

    size_mib: int
    file: Path


@dataclass(frozen=True)
class Disk:
    """A raw disk image or filesystem. The guest finds it by the serial number ``squib-<name>``."""

    name: str
    path: Path
    read_only: bool


@dataclass(frozen=True)
class Nic:
    """A network card on the tap device ``tap``."""

    tap: str
    mac: str


@dataclass(frozen=True)
class MachineSpec:
    """A VM as a VMM sees it. All paths are read by the engine only; a VMM gets open files.

    ``boot_args`` is appended to the driver's kernel command line.
    """

    vm_id: str
    vcpu_count: int
    memory: FreshMemory | MappedMemory
    kernel: Path
    initramfs: Path
    disks: tuple[Disk, ...]
    nics: tuple[Nic, ...] = ()
    boot_args: str = ""


@dataclass(frozen=True)
class Capabilities:
    """What a driver can do beyond running a guest with disks."""

    pause: bool = False
    mapped_memory: bool = False
    nics: bool = False


def check_supported(driver: str, capabilities: Capabilities, spec: MachineSpec) -> None:
    """Raise `Unsupported` for the first part of ``spec`` that the driver cannot do."""
    wanted = {"mapped memory": isinstance(spec.memory, MappedMemory), "network cards": bool(spec.nics)}
    able = {"mapped memory": capabilities.mapped_memory, "network cards": capabilities.nics}
    for feature, is_wanted in wanted.items():
        if is_wanted and not able[feature]:
            raise Unsupported(f"the driver {driver} does not support {feature}")


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
    """Why a VMM ended, and one sentence about it; ``detail`` is the end of the log that shows it, or empty.

    Both are printable text, although they may quote the guest (`squib.protocol.text`).
    """

    kind: ExitKind
    text: str
    detail: str = ""


class Machine(Protocol):
    """A VMM process, and this engine's connections to it."""

    @property
    def pid(self) -> int: ...

    async def connect_agent(self) -> socket.socket:
        """Connect to the guest agent's byte stream.

        Returns a connected, non-blocking stream socket; the caller closes it. A new connection replaces an older one.
        Raises `OSError` or `AgentLost` if there is none to connect to.
        """

    async def wait(self) -> ExitReason:
        """Return when the VMM has ended, its sockets are removed and its last output is in the logs.

        May be called often.
        """

    async def pause(self) -> None:
        """Halt the guest's processors. Idempotent. Raises `ToolFailed` if the VMM does not answer."""

    async def resume(self) -> None:
        """Let the guest's processors run. Idempotent. Raises `ToolFailed` if the VMM does not answer."""

    async def is_paused(self) -> bool:
        """Ask the VMM whether the guest stands still. Raises `ToolFailed` if the VMM does not answer."""

    async def kill(self) -> None:
        """End the VMM at once and return when `wait` would.

        The guest is not asked: its page cache is lost. Idempotent.
        """

    async def detach(self) -> None:
        """Close this engine's connections and stop watching; the VMM goes on. The object is of no more use."""

    def console_tail(self, max_bytes: int = ..., *, lines: int | None = ...) -> bytes:
        """The last bytes that the guest printed to its console."""


class Driver(Protocol):
    """A kind of VMM on this host."""

    @property
    def name(self) -> str: ...

    @property
    def accelerator(self) -> str:
        """What executes guest code: ``kvm``, or ``tcg`` for QEMU's translator."""

    @property
    def groups(self) -> tuple[int, ...]:
        """Supplementary groups that the user of a VM needs, such as that of ``/dev/kvm``."""

    @property
    def capabilities(self) -> Capabilities: ...

    def console_log(self, folder: Path) -> Path:
        """Return where in ``folder`` the output of the guest's console is kept (`squib.host.logs`)."""

    def memory_overhead_mib(self, spec: MachineSpec) -> int:
        """What the VMM needs on top of the guest's memory, for a memory limit that holds both."""

    async def checks(self) -> list[Check]:
        """What `squib doctor` says about this driver."""

    async def launch(
        self,
        spec: MachineSpec,
        folder: Path,
        identity: ProcessIdentity,
        credentials: Credentials | None,
        on_spawned: Callable[[int], None],
    ) -> Machine:
        """Start a VMM; return when it runs the guest.

        ``folder`` is the driver's own directory of this VM. What the driver keeps on disk is in it.
        The VMM holds the lock of ``identity`` or is in its cgroups, both if it can, from its first moment on.
        ``credentials`` are the user it runs as; ``None``: that of the engine. ``on_spawned`` is called with its pid
        as soon as it exists, before it runs the guest, for the record; what it raises ends the launch. After any
        error, and after a cancellation, no process and no socket is left.

        Raises `Unsupported`, `WrongState` if a VMM of this VM still runs, `DependencyMissing`, `BootFailed` with the
        end of the VMM's log if it ends at once or does not answer.
        """

    async def adopt(self, folder: Path, identity: ProcessIdentity) -> Machine | None:
        """Return the machine that a former engine launched with ``folder``; ``None`` if it has ended.

        ``identity`` is how its VMM is recognised.
        """
