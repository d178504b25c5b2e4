"""Every name that squib has on disk, in one place.

``$SQUIB_HOME`` (default ``~/.squib``) is the *state directory*: one engine owns it. It is 0700, so nothing below
needs to be guarded one by one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from squib.errors import InvalidArgument

API_SOCKET, AGENT_SOCKET = "api.sock", "agent.sock"
"""Firecracker's sockets, in its chroot."""


def process_lock(folder: Path, role: str) -> Path:
    """Return the path of the lock that an owner's process holds.

    ``folder`` is the owner's directory, ``role`` the role of the process.
    """
    return folder / f"{role}.lock"


@dataclass(frozen=True)
class DriverPaths:
    """What every driver keeps in its directory of a VM."""

    root: Path

    @property
    def console_log(self) -> Path:
        return self.root / "console.log"

    @property
    def vmm_log(self) -> Path:
        """Return the log of what the VMM itself prints, which the engine copies from a named pipe."""
        return self.root / "vmm.log"

    def endpoints(self) -> tuple[Path, ...]:
        """Return the sockets and pipes of a running VM."""
        return ()


class QemuPaths(DriverPaths):
    """What the QEMU driver keeps in its directory of a VM."""

    @property
    def output_pipe(self) -> Path:
        """Return the named pipe for QEMU's standard output and error.

        It is not a file, because a guest can make QEMU print without end.
        """
        return self.root / "output.pipe"

    @property
    def agent_socket(self) -> Path:
        return self.root / "agent.sock"

    @property
    def qmp_socket(self) -> Path:
        return self.root / "qmp.sock"

    @property
    def console_socket(self) -> Path:
        return self.root / "console.sock"

    def endpoints(self) -> tuple[Path, ...]:
        return (self.agent_socket, self.qmp_socket, self.console_socket, self.output_pipe)


class FirecrackerPaths(DriverPaths):
    """What the Firecracker driver keeps in its directory of a VM."""

    @property
    def metrics_log(self) -> Path:
        """Return Firecracker's metrics: a JSON object per line and minute."""
        return self.root / "metrics.log"

    @property
    def console_pipe(self) -> Path:
        return self.root / "console.pipe"

    @property
    def log_pipe(self) -> Path:
        return self.root / "log.pipe"

    @property
    def metrics_pipe(self) -> Path:
        return self.root / "metrics.pipe"

    @property
    def devices(self) -> Path:
        """Return the state of the devices that Firecracker has loaded, or is about to load."""
        return self.root / "loaded-devices"

    @property
    def jail(self) -> Path:
        """Return the directory on which the chroot is mounted.

        Only Firecracker sees what is mounted; for others it is empty.
        """
        return self.root / "jail"

    def endpoints(self) -> tuple[Path, ...]:
        """Return the sockets, which are here only without the jailer, and the pipes."""
        sockets = (self.root / API_SOCKET, self.root / AGENT_SOCKET)
        return (*sockets, self.console_pipe, self.log_pipe, self.metrics_pipe)


@dataclass(frozen=True)
class SavedPaths:
    """The directory of a saved state: of a template, a snapshot, or a suspended VM.

    Not every one has all three files. It is complete if it has its manifest.
    """

    root: Path

    @property
    def memory(self) -> Path:
        return self.root / "memory"

    @property
    def devices(self) -> Path:
        return self.root / "devices"

    @property
    def overlay(self) -> Path:
        return self.root / "overlay.ext4"

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.memory, self.devices, self.overlay)

    @property
    def manifest(self) -> Path:
        """Return the file that describes the others. Of a template, its time is when it was last used."""
        return self.root / "manifest.json"


@dataclass(frozen=True)
class VMPaths:
    """The directory of one VM."""

    root: Path

    @property
    def overlay(self) -> Path:
        return self.root / "overlay.ext4"

    @property
    def frozen_mark(self) -> Path:
        """Return the file that is there while the VM's commands may be frozen (`squib.core.snapshots.frozen`)."""
        return self.root / "frozen"

    @property
    def fingerprint(self) -> Path:
        """Return the file that says with what the VM was launched (`squib.drivers.base.Driver.fingerprint`)."""
        return self.root / "fingerprint.json"

    @property
    def saved(self) -> SavedPaths:
        """Return the directory of the state that the VM goes on from when it starts. It is there or not as a whole."""
        return SavedPaths(self.root / "saved")

    @property
    def saving(self) -> SavedPaths:
        """Return the directory of a saved state that is not complete yet."""
        return SavedPaths(self.root / "saving")

    def driver(self, name: str) -> Path:
        """Return the directory of the VM's driver: its sockets and logs."""
        return self.root / name

    @property
    def qemu(self) -> QemuPaths:
        return QemuPaths(self.driver("qemu"))


@dataclass(frozen=True)
class FirecrackerRelease:
    """The directory of an installed Firecracker.

    Its two programs are of one release, and never change.
    """

    root: Path

    @property
    def vmm(self) -> Path:
        return self.root / "firecracker"

    @property
    def jailer(self) -> Path:
        return self.root / "jailer"

    @property
    def record(self) -> Path:
        """Return the file that says what was installed."""
        return self.root / "release.json"


@dataclass(frozen=True)
class Home:
    """The state directory."""

    root: Path

    @classmethod
    def from_environment(cls) -> Home:
        """Return the state directory ``$SQUIB_HOME``, by default ``~/.squib``.

        Raises `InvalidArgument` if the path is not absolute, or the home directory is not known.
        """
        value = os.environ.get("SQUIB_HOME") or "~/.squib"
        try:
            root = Path(value).expanduser()
        except RuntimeError:
            raise InvalidArgument(
                f"SQUIB_HOME is {value!r}: that user has no home directory"
                if os.environ.get("SQUIB_HOME")
                else f"HOME is not set, and user {os.getuid()} has no home directory",
                hint="export SQUIB_HOME=/some/dir",
            ) from None
        if not root.is_absolute():
            raise InvalidArgument(f"SQUIB_HOME is {value!r}, not an absolute path", hint="export SQUIB_HOME=/some/dir")
        return cls(root)

    @property
    def engine_lock(self) -> Path:
        return self.root / "engine.lock"

    @property
    def start_lock(self) -> Path:
        """Return the lock that a client holds while it starts an engine.

        It ensures that only one client starts an engine.
        """
        return self.root / "start.lock"

    @property
    def engine_socket(self) -> Path:
        return self.root / "engine.sock"

    @property
    def engine_log(self) -> Path:
        return self.root / "engine.log"

    @property
    def database(self) -> Path:
        return self.root / "squib.db"

    @property
    def token(self) -> Path:
        """Return the token file (mode 0600) of `squib serve` on TCP."""
        return self.root / "token"

    @property
    def vms(self) -> Path:
        return self.root / "vms"

    def vm(self, vm_id: str) -> VMPaths:
        return VMPaths(self.vms / vm_id)

    @property
    def snapshots(self) -> Path:
        return self.root / "snapshots"

    def snapshot(self, snapshot_id: str) -> SavedPaths:
        return SavedPaths(self.snapshots / snapshot_id)

    def owner(self, kind: str, owner_id: str) -> Path:
        """Return the directory of an owner of leases.

        Examples are ``vms/vm-7k2m`` and ``templates/…``.
        """
        return self.root / f"{kind}s" / owner_id

    @property
    def bin(self) -> Path:
        """Return the directory of programs that ``squib install`` installed."""
        return self.root / "bin"

    @property
    def firecracker(self) -> Path:
        """Return the link to the directory of the installed Firecracker.

        It is replaced by one rename (`squib.drivers.firecracker.installed`).
        """
        return self.bin / "firecracker"

    @property
    def cache(self) -> Path:
        """Return the directory of files that can be built again.

        It holds kernels, images, initramfs archives, empty overlays and templates.
        """
        return self.root / "cache"

    @property
    def cache_folders(self) -> tuple[Path, ...]:
        """Return all directories of the cache."""
        folders = (self.images, self.kernels, self.initramfs, self.overlays, self.templates)
        return (*folders, self.building, self.locks)

    @property
    def images(self) -> Path:
        return self.cache / "images"

    @property
    def kernels(self) -> Path:
        return self.cache / "kernels"

    @property
    def initramfs(self) -> Path:
        return self.cache / "initramfs"

    @property
    def overlays(self) -> Path:
        return self.cache / "overlays"

    @property
    def templates(self) -> Path:
        return self.cache / "templates"

    @property
    def building(self) -> Path:
        """Return the directory of unfinished builds.

        Everything in it that is not locked may be deleted.
        """
        return self.cache / "building"

    @property
    def locks(self) -> Path:
        return self.cache / "locks"

    def build_lock(self, what: str) -> Path:
        """Return the lock that is held by the process that builds ``what``.

        The processes that it starts do not hold this lock. ``what`` is, for example, ``image-base``.
        """
        return self.locks / f"build-{what}.lock"

    def tools_lock(self, what: str) -> Path:
        """Return the lock held while any tool that builds ``what`` runs."""
        return self.locks / f"tools-{what}.lock"
