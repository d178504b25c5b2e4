"""Machine specifications for tests of drivers."""

from __future__ import annotations

from pathlib import Path

from squib.drivers.base import Disk, FreshMemory, MachineSpec


def machine_spec(
    vm_id: str,
    *,
    kernel: Path,
    initramfs: Path,
    base: Path,
    overlay: Path,
    mem_size_mib: int = 128,
    boot_args: str = "",
) -> MachineSpec:
    """A machine with one vCPU and the two disks of every VM."""
    disks = (Disk("base", base, read_only=True), Disk("overlay", overlay, read_only=False))
    return MachineSpec(vm_id, 1, FreshMemory(mem_size_mib), kernel, initramfs, disks, boot_args=boot_args)
