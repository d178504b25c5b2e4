"""Run a tiny guest that shows if ``/dev/kvm`` runs a stock x86-64 kernel.

A program, not a library. `squib.host.probe` runs this file as a script with a bare interpreter, so it does not import
squib. It prints one line for each step that the guest reports, as it happens: ``name value monotonic-seconds``.

The guest runs at the address where a stock Linux kernel is linked (0xffffffff80001000), in 64-bit mode and ring 0. It
reports each of these steps through an I/O port:

- its CS register: paravirtual KVM may run the guest's "ring 0" in ring 3;
- an SSE2 instruction: a KVM that interprets guest code supports few of them and exits with KVM_EXIT_INTERNAL_ERROR;
- an exception that its own IDT handles: paravirtual KVM may ignore the guest's IDT;
- a loop of 200,000 turns: 0.1 ms on a CPU, hundreds of milliseconds if it is interpreted;
- HLT.

Numbers and layouts come from ``linux/kvm.h`` and ``asm/kvm.h`` (x86) and from the Intel manual, volume 3, chapters 3 to
6.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import signal
import struct
import sys
import time

LIMIT_S = 1.0
"""SIGALRM ends this process after this time, also inside KVM_RUN. The report of a guest that hangs is incomplete."""
LOOP_TURNS = 200_000

# ioctl numbers: _IO(0xAE, n); for the others the top two bits are the direction, the bits below the structure's size.
KVM_GET_API_VERSION = 0xAE00
KVM_CREATE_VM = 0xAE01
KVM_GET_VCPU_MMAP_SIZE = 0xAE04
KVM_GET_SUPPORTED_CPUID = 0xC008AE05  # 8 bytes and a variable part
KVM_CREATE_VCPU = 0xAE41
KVM_RUN = 0xAE80
KVM_SET_USER_MEMORY_REGION = 0x4020AE46  # 32 bytes
KVM_SET_REGS = 0x4090AE82  # 144 bytes
KVM_GET_SREGS = 0x8138AE83  # 312 bytes
KVM_SET_SREGS = 0x4138AE84
KVM_SET_CPUID2 = 0x4008AE90  # 8 bytes and a variable part
KVM_API_VERSION = 12
CPUID_ENTRIES = 256  # KVM's own limit

EXIT_IO = 2
EXIT_NAMES = {5: "HLT", 6: "MMIO", 8: "SHUTDOWN", 9: "FAIL_ENTRY", 17: "INTERNAL_ERROR"}
PORTS = {0x10: "cs", 0x11: "sse2", 0x12: "idt", 0x13: "resumed", 0x14: "looped"}

# Physical memory (2 MiB, mapped at 0 and at KERNEL_BASE): code, #UD handler, stack, page tables, GDT, IDT.
KERNEL_BASE = 0xFFFF_FFFF_8000_0000
CODE, HANDLER, STACK = 0x1000, 0x2000, 0x8000
PML4, PDPT_LOW, PAGE_DIRECTORY, PDPT_HIGH = 0x10000, 0x11000, 0x12000, 0x13000
GDT, IDT = 0x14000, 0x15000
CODE_SELECTOR, DATA_SELECTOR = 8, 16
VECTOR_UD = 6

PROGRAM = (
    b"\x8c\xc8\xe7\x10"  # mov eax, cs; out 0x10, eax
    b"\x66\x0f\xef\xc0\xe7\x11"  # pxor xmm0, xmm0; out 0x11, eax
    b"\x0f\x0b\xe7\x13"  # ud2; out 0x13, eax
    b"\xb9" + struct.pack("<I", LOOP_TURNS) +  # mov ecx, LOOP_TURNS
    b"\xff\xc9\x75\xfc"  # dec ecx; jnz -4
    b"\xe7\x14\xf4"  # out 0x14, eax; hlt
)  # fmt: skip
UD_HANDLER = b"\xe7\x12\x48\x83\x04\x24\x02\x48\xcf"  # out 0x12, eax; add qword [rsp], 2 (over the ud2); iretq


def main() -> None:
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    if (version := fcntl.ioctl(kvm, KVM_GET_API_VERSION, 0)) != KVM_API_VERSION:
        sys.exit(f"KVM API version {version}")
    vm = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
    memory = _guest_memory()
    # struct kvm_userspace_memory_region: u32 slot, flags; u64 guest_phys_addr, memory_size, userspace_addr
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fcntl.ioctl(vm, KVM_SET_USER_MEMORY_REGION, struct.pack("<IIQQQ", 0, 0, 0, len(memory), address))
    vcpu = fcntl.ioctl(vm, KVM_CREATE_VCPU, 0)
    _set_cpuid(kvm, vcpu)
    _set_registers(vcpu)
    _run(vcpu, mmap.mmap(vcpu, fcntl.ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0)))


def _guest_memory() -> mmap.mmap:
    memory = mmap.mmap(-1, 2 << 20)
    memory[CODE : CODE + len(PROGRAM)] = PROGRAM
    memory[HANDLER : HANDLER + len(UD_HANDLER)] = UD_HANDLER
    # Page tables. 3: present, writable. 0x83: also a 2 MiB page, at physical 0.
    struct.pack_into("<Q", memory, PML4, PDPT_LOW | 3)
    struct.pack_into("<Q", memory, PML4 + 8 * 511, PDPT_HIGH | 3)
    struct.pack_into("<Q", memory, PDPT_LOW, PAGE_DIRECTORY | 3)
    struct.pack_into("<Q", memory, PDPT_HIGH + 8 * 510, PAGE_DIRECTORY | 3)
    struct.pack_into("<Q", memory, PAGE_DIRECTORY, 0x83)
    # GDT: null, 64-bit code, data. IDT: one gate (offset 0-15, selector, IST, type 0x8e, offset 16-31, 32-63,
    # reserved).
    struct.pack_into("<QQ", memory, GDT + CODE_SELECTOR, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)
    handler = KERNEL_BASE + HANDLER
    gate = (handler & 0xFFFF, CODE_SELECTOR, 0, 0x8E, handler >> 16 & 0xFFFF, handler >> 32, 0)
    struct.pack_into("<HHBBHII", memory, IDT + 16 * VECTOR_UD, *gate)
    return memory


def _set_cpuid(kvm: int, vcpu: int) -> None:
    """Show the guest all CPU features that KVM supports.

    Current host kernels allow long mode only if CPUID has it.

    struct kvm_cpuid2: u32 entries, padding; then entries of 40 bytes.
    """
    cpuid = bytearray(8 + 40 * CPUID_ENTRIES)
    struct.pack_into("<I", cpuid, 0, CPUID_ENTRIES)
    fcntl.ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid, True)
    fcntl.ioctl(vcpu, KVM_SET_CPUID2, cpuid, True)


def _segment(selector: int, kind: int, *, long_mode: bool) -> bytes:
    """Return a struct kvm_segment.

    u64 base; u32 limit; u16 selector; u8 type, present, dpl, db, s, l, g, avl, unusable, padding.
    """
    return struct.pack("<QIH10B", 0, 0xFFFF_FFFF, selector, kind, 1, 0, not long_mode, 1, long_mode, 1, 0, 0, 0)


def _set_registers(vcpu: int) -> None:
    """Start in 64-bit mode at CODE, with our page tables, GDT and IDT."""
    # struct kvm_sregs: 8 segments of 24 bytes (cs ds es fs gs ss tr ldt), gdt and idt (u64 base, u16 limit, padding to
    # 16), u64 cr0 cr2 cr3 cr4 cr8 efer apic_base, and the interrupt bitmap.
    sregs = bytearray(312)
    fcntl.ioctl(vcpu, KVM_GET_SREGS, sregs, True)
    sregs[0:24] = _segment(CODE_SELECTOR, 11, long_mode=True)
    for index in range(1, 6):
        sregs[24 * index : 24 * index + 24] = _segment(DATA_SELECTOR, 3, long_mode=False)
    struct.pack_into("<QH", sregs, 192, KERNEL_BASE + GDT, 23)
    struct.pack_into("<QH", sregs, 208, KERNEL_BASE + IDT, 0xFFF)
    cr0 = 0x8005_0033  # PE MP ET NE WP AM PG
    cr4 = 0x620  # PAE OSFXSR OSXMMEXCPT
    efer = 0x500  # LME LMA
    struct.pack_into("<6Q", sregs, 224, cr0, 0, PML4, cr4, 0, efer)
    fcntl.ioctl(vcpu, KVM_SET_SREGS, bytes(sregs))
    # struct kvm_regs: rax rbx rcx rdx rsi rdi rsp rbp r8-r15 rip rflags
    regs = [0] * 18
    regs[6], regs[16], regs[17] = KERNEL_BASE + STACK, KERNEL_BASE + CODE, 2
    fcntl.ioctl(vcpu, KVM_SET_REGS, struct.pack("<18Q", *regs))


def _run(vcpu: int, run: mmap.mmap) -> None:
    """Run the guest and print its reports until it stops.

    struct kvm_run: u32 exit_reason at 8; for an I/O exit u16 port at 34, and at 40 the offset of the data in the page.
    """
    while True:
        fcntl.ioctl(vcpu, KVM_RUN, 0)
        (reason,) = struct.unpack_from("<I", run, 8)
        if reason != EXIT_IO:
            _report("end", EXIT_NAMES.get(reason, str(reason)))
            return
        (port,), (offset,) = struct.unpack_from("<H", run, 34), struct.unpack_from("<Q", run, 40)
        _report(PORTS.get(port, f"port-{port:#x}"), str(struct.unpack_from("<I", run, offset)[0]))


def _report(name: str, value: str) -> None:
    os.write(1, f"{name} {value} {time.monotonic():.6f}\n".encode())


if __name__ == "__main__":
    main()
