"""Build QEMU's command line for a machine, from descriptor numbers.

Pure functions.

QEMU opens no file by its own path. The engine may be root, with a private state directory, while QEMU runs as the VM's
own user. So QEMU inherits every file and socket as a descriptor: disks through ``-add-fd`` and ``/dev/fdset``, and
listening sockets through ``fd=``. The kernel, the initramfs and the memory can only be passed as a path, which is
``/proc/self/fd/N``; opening that needs permission for the file, but not for its directories.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from squib.drivers.base import Disk, FreshMemory, MachineSpec

AGENT_PORT = "squib.agent"
"""The name of the virtio port that carries the agent's stream (``protocol/agent.md``)."""

_COMMON_BOOT_ARGS = (
    "console=ttyS0",
    "quiet",
    "panic=-1",  # a panic reboots at once, and with -no-reboot QEMU then exits
    "reboot=t",  # reboot by triple fault, since there is no keyboard controller
    "cryptomgr.notests",  # skip the self-tests of the crypto drivers: 0.35 s of a 2.0 s boot under TCG
    "8250.nr_uarts=1",
)
_TCG_BOOT_ARGS = (
    "tsc=reliable",  # a busy host makes the kernel distrust the TSC, and all other clocks are slow to read
    "no_timer_check",  # on a busy host the check fails and the kernel panics
    # With ASLR, ld.so and libc have new addresses in each process, and TCG translates them again. Without it a command
    # starts three times as fast, and the translation cache stays small. sysctl.kernel.randomize_va_space=2 restores it.
    "norandmaps",
    "noreplace-smp",  # patching kernel code discards translations: 0.1 s of a 1.7 s boot
)

# erms: the kernel copies and clears pages with `rep movsb`, which TCG executes byte by byte. Without erms it moves 8
#   bytes at a time: pipes are 4.7 times and page faults 2.3 times as fast.
# la57: five-level page tables, whose page walks are longer; guests do not need them.
# svm, vmx: the CPU's extensions for running VMs, which only a nested guest gets. TCG emulates an AMD CPU with svm on
#   every host. Under KVM the host's own one is in the CPU model if the host's module allows nesting.
_TCG_CPU = "max,-erms,-la57"
_KVM_CPU = "host"


@dataclass(frozen=True)
class Descriptors:
    """The file descriptors that QEMU inherits.

    ``disks`` are in the order of the spec. ``memory`` is a memfd. ``devices`` is the saved state of the devices, if the
    guest is not booted. The other three are listening sockets.
    """

    kernel: int
    initramfs: int
    disks: tuple[int, ...]
    memory: int
    qmp: int
    agent: int
    console: int
    devices: int | None = None

    def all(self) -> tuple[int, ...]:
        return (
            self.kernel, self.initramfs, *self.disks,
            self.memory, self.qmp, self.agent, self.console,
            *(() if self.devices is None else (self.devices,)),
        )  # fmt: skip


@dataclass(frozen=True)
class Acceleration:
    """How guest code runs: KVM, or TCG with a cache for translated code.

    The cache has ``tb_size_mib`` MiB and uses memory only as it fills. A boot fills 64 MiB. With a cache of that size
    every command takes twice as long to start, and Python programs run a third longer. From 128 MiB on, more makes no
    difference.
    """

    kvm: bool
    tb_size_mib: int = 256


def kernel_command_line(accel: Acceleration, boot_args: str = "") -> str:
    """Return the guest kernel's command line.

    The user's ``boot_args`` come last, so they take precedence.
    """
    return " ".join((*_COMMON_BOOT_ARGS, *(() if accel.kvm else _TCG_BOOT_ARGS), *boot_args.split()))


def command_line(spec: MachineSpec, fds: Descriptors, accel: Acceleration, *, program: str) -> list[str]:
    """Return the arguments that run ``spec``. The first one is the program."""
    return [
        program,
        "-name", spec.vm_id,
        *_machine_options(spec, fds, accel),
        *_boot_options(spec, fds, accel),
        *_device_options(spec, fds),
        *_restore_options(fds),
        *_ISOLATION_OPTIONS,
    ]  # fmt: skip


_ISOLATION_OPTIONS = (
    "-nodefaults", "-no-user-config", "-display", "none", "-nic", "none", "-no-reboot",
    "-S",  # the guest runs only after the jail is sealed: the engine then sends cont to the monitor
    "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
)  # fmt: skip


def _machine_options(spec: MachineSpec, fds: Descriptors, accel: Acceleration) -> list[str]:
    """Return the options for CPU, memory and chipset.

    Fresh memory is a shared mapping of its memfd. A saved one is mapped privately, so that the guest's writes are its
    own. ``dump-guest-core=off`` keeps guest memory out of core dumps.
    """
    share = "on" if isinstance(spec.memory, FreshMemory) else "off"
    size = f"{spec.memory.size_mib}M"
    return [
        "-M", "q35,memory-backend=mem,dump-guest-core=off,i8042=off,sata=off,smbus=off,vmport=off,hpet=off,"
        "suppress-vmdesc=on",
        "-accel", "kvm" if accel.kvm else f"tcg,thread=multi,tb-size={accel.tb_size_mib}",
        "-cpu", _cpu_model(spec, accel),
        "-smp", str(spec.vcpu_count),
        "-m", size,
        "-object", f"memory-backend-file,id=mem,size={size},mem-path=/proc/self/fd/{fds.memory},share={share}",
    ]  # fmt: skip


def _cpu_model(spec: MachineSpec, accel: Acceleration) -> str:
    if accel.kvm:
        return _KVM_CPU if spec.nested else f"{_KVM_CPU},-svm,-vmx"
    return f"{_TCG_CPU},{'+' if spec.nested else '-'}svm"


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


def _restore_options(fds: Descriptors) -> list[str]:
    """Return the options for a state of the devices, which is a migration that has no memory in it.

    QEMU loads it when the engine tells it to (``migrate-incoming``). It may read the memory then, which is loaded while
    QEMU starts.

    `squib.drivers.qemu.machine.QemuMachine.save` wrote it, with a header that has no description of the machine.
    """
    if fds.devices is None:
        return []
    return ["-global", "migration.send-configuration=off", "-incoming", "defer"]


def _chardev(name: str, fd: int) -> list[str]:
    return ["-chardev", f"socket,id={name},fd={fd},server=on,wait=off"]


def _disk(disk: Disk, fd: int, *, fdset: int) -> list[str]:
    """Return the options of a virtio disk.

    The agent finds it by its serial number.

    The cache is write-back, and QEMU executes the guest's flushes. QEMU's image locks are off: the engine decides which
    VM uses an overlay, and a lock on an inherited open file is shared by every process that inherited it. Errors of the
    host's disk, such as a full disk, are reported to the guest; by default QEMU would pause the guest.
    """
    file = {"driver": "file", "filename": f"/dev/fdset/{fdset}", "locking": "off", "aio": "threads"}
    mode: dict[str, object] = {"read-only": True} if disk.read_only else {"discard": "unmap"}
    node = {"driver": "raw", "node-name": disk.name, "file": file | mode} | mode
    return [
        "-add-fd", f"fd={fd},set={fdset}",
        "-blockdev", json.dumps(node),
        "-device", f"virtio-blk-pci,drive={disk.name},serial=squib-{disk.name},werror=report,rerror=report",
    ]  # fmt: skip
