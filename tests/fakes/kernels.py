"""Fake kernels and modules in the format of real ones. They cannot boot."""

import lzma
import struct
from collections.abc import Sequence

VERSION = "6.12.0-test-amd64"


def elf(kind: int, sections: Sequence[tuple[bytes, bytes]] = (), tail: bytes = b"") -> bytes:
    """A 64-bit x86-64 ELF file with ``sections`` (name, content); ``kind`` is 1 for a module, 2 for a kernel."""
    table = [(b"", b""), *sections]
    names = b"".join(name + b"\0" for name, _ in table) + b".shstrtab\0"
    table.append((b".shstrtab", names))
    body, headers, at = b"", b"", 64
    for name, content in table:
        offset = names.index(name + b"\0") if name else 0
        headers += struct.pack("<IIQQQQIIQQ", offset, 1 if name else 0, 0, 0, at, len(content), 0, 0, 1, 0)
        body += content
        at += len(content)
    head = (
        b"\x7fELF\x02\x01\x01"
        + bytes(9)
        + struct.pack("<HHIQQQIHHHHHH", kind, 0x3E, 1, 0, 0, at, 0, 64, 0, 0, 64, len(table), len(table) - 1)
    )
    return head + body + headers + tail


def module(name: str, depends: str = "", *, signature: bytes = b"") -> bytes:
    """A kernel module; with ``signature``, signed as the kernel's build does it."""
    info = b"\0".join([b"license=GPL", b"depends=" + depends.encode(), b"name=" + name.encode(), b""])
    signed = b""
    if signature:
        signed = signature + struct.pack(">BBBBB3xI", 0, 0, 2, 0, 0, len(signature)) + b"~Module signature appended~\n"
    return elf(1, [(b".text", b"\x90" * 32), (b".modinfo", info)], signed)


def vmlinux(version: str = VERSION) -> bytes:
    return elf(2, [(b".rodata", b"Linux version " + version.encode() + b" (someone@somewhere) (gcc)\0")])


def bzimage(version: str = VERSION, payload: bytes | None = None) -> bytes:
    """A bzImage around an xz-compressed `vmlinux`, or around ``payload``."""
    if payload is None:
        plain = vmlinux(version)
        payload = lzma.compress(plain, check=lzma.CHECK_CRC32) + struct.pack("<I", len(plain))
    setup_sectors, payload_offset = 3, 0x40
    image = bytearray((setup_sectors + 1) * 512 + payload_offset)
    image[0x1F1] = setup_sectors
    image[0x1FE:0x206] = b"\x55\xaa\0\0HdrS"
    struct.pack_into("<H", image, 0x20E, 0x300)
    image[0x500 : 0x500 + len(version) + 11] = version.encode() + b" (x@y) #1\0\0"
    struct.pack_into("<II", image, 0x248, payload_offset, len(payload))
    return bytes(image) + payload + b"the rest"
