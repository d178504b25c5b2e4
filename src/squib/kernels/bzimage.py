"""Linux kernel files: format, version, and the ELF kernel in a bzImage.

The header is described in the kernel's ``Documentation/arch/x86/boot.rst``.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

from squib.errors import InvalidArgument
from squib.kernels.compression import decompress

_SECTOR = 512
_VERSION = re.compile(rb"[0-9][A-Za-z0-9._+~-]*")
_BANNER = re.compile(rb"Linux version ([^\s\0]{1,128}) ")


def is_bzimage(data: bytes) -> bool:
    return data[0x1FE:0x200] == b"\x55\xaa" and data[0x202:0x206] == b"HdrS"


def is_elf_kernel(data: bytes) -> bool:
    """Return whether ``data`` is an x86-64 ELF executable (``vmlinux``)."""
    return data[:6] == b"\x7fELF\x02\x01" and data[0x10:0x14] == b"\x02\x00\x3e\x00"


def version(data: bytes, *, source: Path) -> str:
    """Return the release (``uname -r``) of a bzImage or ELF kernel.

    Raises `InvalidArgument`.
    """
    text = b""
    if is_bzimage(data):
        (offset,) = struct.unpack_from("<H", data, 0x20E)
        text = data[offset + 0x200 :][:256].split(b"\0")[0].split(b" ")[0] if offset else b""
    elif is_elf_kernel(data) and (banner := _BANNER.search(data)):
        text = banner[1]
    if not _VERSION.fullmatch(text):
        raise InvalidArgument(f"{source} contains no Linux version")
    return text.decode()


def extract_elf(data: bytes, *, source: Path) -> bytes:
    """Return the decompressed ELF kernel (``vmlinux``) of a bzImage.

    Raises `InvalidArgument`, `DependencyMissing`.
    """
    setup_sectors = data[0x1F1] or 4
    offset, length = struct.unpack_from("<II", data, 0x248)
    start = (setup_sectors + 1) * _SECTOR + offset
    payload = data[start : start + length]
    if payload.startswith(b"\x28\xb5\x2f\xfd") or payload.startswith(b"\x02\x21\x4c\x18"):
        payload = payload[:-4]  # the tools take the size at the end for damage
    elf = decompress(payload, source=source)
    if not is_elf_kernel(elf):
        raise InvalidArgument(f"{source} contains no x86-64 kernel in a known compression")
    return elf
