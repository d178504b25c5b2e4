"""The requests that configure and run a machine.

Pure functions. The reference is Firecracker's OpenAPI file, ``src/firecracker/swagger/firecracker.yaml``.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass, field

from squib.drivers.base import Disk, MachineSpec

GUEST_CID = 3
"""The guest's vsock address. Each Firecracker has a vsock of its own, so all guests have the same one."""

_BOOT_ARGS = (
    "console=ttyS0",
    "quiet",
    "panic=-1",  # a panic restarts at once, and Firecracker then ends
    "reboot=k",  # restart through the keyboard controller, the only way that Firecracker notices
    "squib.poweroff=restart",
    "cryptomgr.notests",
    "8250.nr_uarts=1",
    # The keyboard controller exists for the restart only. Do not look for a mouse and a keyboard.
    "i8042.noaux",
    "i8042.nomux",
    "i8042.dumbkbd",
)
_NO_PCI = "pci=off"


@dataclass(frozen=True)
class Request:
    """A request to Firecracker's API. It changes something unless it is a ``GET``."""

    method: str
    path: str
    body: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class GuestFiles:
    """The paths by which Firecracker opens a machine's files.

    ``disks`` are in the order of the spec.
    """

    kernel: str
    initramfs: str
    disks: tuple[str, ...]
    agent_socket: str
    metrics: str
    memory: str
    devices: str


START = Request("PUT", "/actions", {"action_type": "InstanceStart"})
PAUSE = Request("PATCH", "/vm", {"state": "Paused"})
RESUME = Request("PATCH", "/vm", {"state": "Resumed"})
DESCRIBE = Request("GET", "/")
SAVED_DEVICES = "saved-devices"
"""The file in its working directory to which a paused Firecracker writes the state of its devices (`SAVE_DEVICES`)."""
SAVE_DEVICES = Request("PUT", "/snapshot/create", {"snapshot_path": SAVED_DEVICES, "mem_file_path": "/"})
"""Firecracker writes the devices' state first, and then *refuses* this, because the memory cannot be written to ``/``.

It would write all memory, and the engine reads only what the guest has used (`squib.host.memory`). The refusal is
`NO_MEMORY_FILE`.
"""
NO_MEMORY_FILE = "Cannot perform open on the memory backing file"


def load(files: GuestFiles) -> list[Request]:
    """Return the requests that load a saved machine. It is then paused."""
    return [
        Request("PUT", "/metrics", {"metrics_path": files.metrics}),
        Request(
            "PUT",
            "/snapshot/load",
            {
                "snapshot_path": files.devices,
                "mem_backend": {"backend_type": "File", "backend_path": files.memory},
                "resume_vm": False,
            },
        ),
    ]


def configuration(spec: MachineSpec, files: GuestFiles, *, pci: bool) -> list[Request]:
    """Return the requests that configure a machine before it starts.

    ``pci``: its devices are on a PCI bus; otherwise they are mapped into memory.
    """
    return [
        Request("PUT", "/metrics", {"metrics_path": files.metrics}),
        Request(
            "PUT",
            "/machine-config",
            {"vcpu_count": spec.vcpu_count, "mem_size_mib": spec.memory.size_mib, "smt": False},
        ),
        Request(
            "PUT",
            "/boot-source",
            {
                "kernel_image_path": files.kernel,
                "initrd_path": files.initramfs,
                "boot_args": kernel_command_line(spec, pci=pci),
            },
        ),
        *(_drive(disk, path) for disk, path in zip(spec.disks, files.disks, strict=True)),
        Request("PUT", "/vsock", {"guest_cid": GUEST_CID, "uds_path": files.agent_socket}),
        Request("PUT", "/entropy"),
        Request("PUT", "/balloon", {"amount_mib": 0, "deflate_on_oom": True}),
    ]


def kernel_command_line(spec: MachineSpec, *, pci: bool) -> str:
    """Return the guest kernel's command line.

    It names the devices of the disks: Firecracker chooses the serial numbers, so the agent cannot find the disks by
    them. The user's ``boot_args`` come last, so they take precedence.
    """
    disks = (
        f"squib.disk.{disk.name}=vd{letter}" for disk, letter in zip(spec.disks, string.ascii_lowercase, strict=False)
    )
    return " ".join((*_BOOT_ARGS, *(() if pci else (_NO_PCI,)), *disks, *spec.boot_args.split()))


def _drive(disk: Disk, path: str) -> Request:
    """Return the request that adds a disk. ``Writeback`` executes the guest's flushes."""
    body = {
        "drive_id": disk.name,
        "path_on_host": path,
        "is_root_device": False,
        "is_read_only": disk.read_only,
        "cache_type": "Unsafe" if disk.read_only else "Writeback",
    }
    return Request("PUT", f"/drives/{disk.name}", body)
