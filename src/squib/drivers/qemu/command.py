"""A machine as QEMU's command line. Pure: descriptor numbers in, arguments out.

QEMU opens nothing by path. The engine may be root with a private state directory while QEMU runs as a user of
the VM's own, so every file and socket is a descriptor that QEMU inherits: disks through ``-add-fd`` and
``/dev/fdset``, listening sockets through ``fd=``, and what only takes a path (kernel, initramfs, memory) through
``/proc/self/fd``, which asks for the permission of the file itself but of no directory.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from squib.drivers.base import Disk, MachineSpec

AGENT_PORT = "squib.agent"
"""The name of the guest's end of the agent's stream (``protocol/agent.md``)."""

_COMMON_BOOT_ARGS = (
    "console=ttyS0",
    "quiet",
    "panic=-1",  # a panic reboots at once, and -no-reboot turns that into QEMU's exit
    "reboot=t",  # by triple fault: no keyboard controller, no ACPI
    "cryptomgr.notests",  # self-tests of the crypto drivers: 0.35 s of 2.0 s under TCG
    "8250.nr_uarts=1",
)
_TCG_BOOT_ARGS = (
    "tsc=reliable",  # on a busy host the watchdog finds the TSC unstable, and every other clock is slow to read
    "no_timer_check",  # on a busy host the check fails and the kernel panics
    # With ASLR ld.so and libc have new addresses in each process, and TCG translates them anew: without it a command
    # starts three times as fast, and the translation cache stays small. sysctl.kernel.randomize_va_space=2 restores it.
    "norandmaps",
    "noreplace-smp",  # patching kernel code throws translations away: 0.1 s of 1.7 s
)

# erms: the kernel copies and clears pages with `rep movsb`, which TCG does byte by byte. Without it 8 bytes at a time:
#   pipes 4.7 times and page faults 2.3 times as fast. la57: a level more in every page walk, for nothing.
_TCG_CPU = "max,-erms,-la57"


@dataclass(frozen=True)
class Descriptors:
    """The numbers of what QEMU inherits.

    ``disks`` are in the order of the spec, ``memory`` is a memfd, the last three are listening sockets.
    """

    kernel: int
    initramfs: int
    disks: tuple[int, ...]
    memory: int
    qmp: int
    agent: int
    console: int

    def all(self) -> tuple[int, ...]:
        return (
            self.kernel, self.initramfs, *self.disks,
            self.memory, self.qmp, self.agent, self.console,
        )  # fmt: skip


@dataclass(frozen=True)
class Acceleration:
    """How guest code runs: KVM, or TCG with a cache of ``tb_size_mib`` for translated code.

    The cache takes memory as it fills. Booting fills 64 MiB; a cache of that size makes every command start twice as
    slowly, and Python programs run a third longer. From 128 MiB on there is no difference.
    """

    kvm: bool
    tb_size_mib: int = 256


def kernel_command_line(accel: Acceleration, boot_args: str = "") -> str:
    """The guest kernel's command line. The user's ``boot_args`` come last, so they win."""
    return " ".join((*_COMMON_BOOT_ARGS, *(() if accel.kvm else _TCG_BOOT_ARGS), *boot_args.split()))


def command_line(spec: MachineSpec, fds: Descriptors, accel: Acceleration, *, program: str) -> list[str]:
    """The arguments that run ``spec``, the program first."""
    return [
        program,
        "-name", spec.vm_id,
        *_machine_options(spec, fds, accel),
        *_boot_options(spec, fds, accel),
        *_device_options(spec, fds),
        *_ISOLATION_OPTIONS,
    ]  # fmt: skip


_ISOLATION_OPTIONS = (
    "-nodefaults", "-no-user-config", "-display", "none", "-nic", "none", "-no-reboot",
    "-S",  # the guest runs when the monitor says so, after the jail is sealed
    "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
)  # fmt: skip


def _machine_options(spec: MachineSpec, fds: Descriptors, accel: Acceleration) -> list[str]:
    """Processor, memory and chipset.

    The memory is a shared mapping of the memfd, so that it can become a template without being copied; a clone will
    have the same line with ``share=off``. dump-guest-core=off keeps it out of core dumps.
    """
    size = f"{spec.memory.size_mib}M"
    return [
        "-M", "q35,memory-backend=mem,dump-guest-core=off,i8042=off,sata=off,smbus=off,vmport=off,hpet=off",
        "-accel", "kvm" if accel.kvm else f"tcg,thread=multi,tb-size={accel.tb_size_mib}",
        "-cpu", "host" if accel.kvm else _TCG_CPU,
        "-smp", str(spec.vcpu_count),
        "-m", size,
        "-object", f"memory-backend-file,id=mem,size={size},mem-path=/proc/self/fd/{fds.memory},share=on",
    ]  # fmt: skip


def _boot_options(spec: MachineSpec, fds: Descriptors, accel: Acceleration) -> list[str]:
    return [
        "-kernel", f"/proc/self/fd/{fds.kernel}",
        "-initrd", f"/proc/self/fd/{fds.initramfs}",
        "-append", kernel_command_line(accel, spec.boot_args),
    ]  # fmt: skip


def _device_options(spec: MachineSpec, fds: Descriptors) -> list[str]:
    return [
        *_chardev("console", fds.console), "-serial", "chardev:console",
        *_chardev("qmp", fds.qmp), "-mon", "chardev=qmp,mode=control",
        *_chardev("agent", fds.agent), "-device", "virtio-serial-pci",
        "-device", f"virtserialport,chardev=agent,name={AGENT_PORT}",
        *(
            option
            for number, (disk, fd) in enumerate(zip(spec.disks, fds.disks, strict=True), 1)
            for option in _disk(disk, fd, fdset=number)
        ),
    ]  # fmt: skip


def _chardev(name: str, fd: int) -> list[str]:
    return ["-chardev", f"socket,id={name},fd={fd},server=on,wait=off"]


def _disk(disk: Disk, fd: int, *, fdset: int) -> list[str]:
    """A virtio disk that the agent finds by its serial number.

    Caching is write-back with the guest's flushes honoured. QEMU's image locks are off: who may use an overlay is
    decided by the engine, and locks that belong to an inherited open file would be shared with whoever else inherited
    it. An error of the host's disk, a full one too, is the guest's to see: by default QEMU would stop the guest.
    """
    file = {"driver": "file", "filename": f"/dev/fdset/{fdset}", "locking": "off", "aio": "threads"}
    mode: dict[str, object] = {"read-only": True} if disk.read_only else {"discard": "unmap"}
    node = {"driver": "raw", "node-name": disk.name, "file": file | mode} | mode
    return [
        "-add-fd", f"fd={fd},set={fdset}",
        "-blockdev", json.dumps(node),
        "-device", f"virtio-blk-pci,drive={disk.name},serial=squib-{disk.name},werror=report,rerror=report",
    ]  # fmt: skip
