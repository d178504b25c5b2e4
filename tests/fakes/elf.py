"""Programs of a few bytes, which print what a test wants."""

import struct

_BASE = 0x400000
_HEADER_BYTES = 64 + 56
X86_64, AARCH64 = 62, 183


def program(output: bytes, status: int = 0, *, machine: int = X86_64) -> bytes:
    """A static ELF program for x86-64 that prints ``output`` and exits with ``status``."""
    tail = b"\xb8\x3c\x00\x00\x00\xbf" + struct.pack("<I", status) + b"\x0f\x05"  # exit(status)
    write = b"\xb8\x01\x00\x00\x00\xbf\x01\x00\x00\x00"  # write(1, …
    length = b"\xba" + struct.pack("<I", len(output)) + b"\x0f\x05"
    distance = len(length) + len(tail)
    address = b"\x48\x8d\x35" + struct.pack("<I", distance)  # lea rsi, [rip + distance]
    return _elf(write + address + length + tail + output, machine)


def hanging() -> bytes:
    """A program that never ends."""
    return _elf(b"\xb8\x22\x00\x00\x00\x0f\x05\xeb\xf7", X86_64)  # pause(); again


def _elf(code: bytes, machine: int) -> bytes:
    size = _HEADER_BYTES + len(code)
    entry = _BASE + _HEADER_BYTES
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = ident + struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return header + segment + code
