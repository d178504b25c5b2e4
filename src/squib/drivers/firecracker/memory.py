"""Find a guest's memory in Firecracker's process.

Firecracker maps it privately: anonymous memory if the guest has booted, and the file if it runs from a saved memory.
The guest may have taken Firecracker over. It then decides what is saved of it, and only machines that run from this
saved memory see that.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from squib.drivers.firecracker.version import Version
from squib.host.memory import Mapping, not_found

_LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p ([0-9a-f]+) \S+ (\d+)[ \t]*(.*)")
_LOW_BYTES = ((1, 13), 3072 << 20), ((0,), 3328 << 20)
"""Where the guest's addresses have a gap for devices, by the version that has it first (``MMIO_MEM_START``).

What does not fit below it is a second region of memory.
"""
_RSDP_AT, _RSDP = 0xE_0000, b"RSD PTR "
"""Where Firecracker writes the root of the ACPI tables, and how that begins. Guests do not use this page otherwise."""


def low_bytes(version: Version) -> int:
    """Return the size of the largest memory that is one region."""
    return next(size for first, size in _LOW_BYTES if version >= first)


def find(pid: int, size: int, low: int) -> Sequence[Mapping]:
    """Find the memory of the guest in process ``pid``.

    If it has more than ``low`` bytes, it is in two regions, and the first of them has ``low`` bytes.

    As `squib.host.memory.Find`.
    """
    mappings = list(_private(pid))
    candidates = [*_files(mappings, size), *_anonymous(mappings, size, low)]
    if len(candidates) > 1:
        candidates = [parts for parts in candidates if _begins_with_a_guests_memory(pid, parts[0])]
    if len(candidates) != 1:
        raise not_found(pid, size, [part for parts in candidates for part in parts])
    return candidates[0]


def _private(pid: int) -> Iterator[Mapping]:
    """Yield the private mappings of files and of anonymous memory that can be written to. Offsets are the files'."""
    for start, end, offset, inode, name in _LINE.findall(Path(f"/proc/{pid}/maps").read_text()):
        if inode != "0" or not name:
            first = int(start, 16)
            yield Mapping(first, int(end, 16) - first, int(offset, 16), shared=False, inode=int(inode))


def _files(mappings: list[Mapping], size: int) -> Iterator[list[Mapping]]:
    """Yield the parts of each file that is mapped whole: ``size`` bytes from its start, without a gap."""
    for inode in {part.inode for part in mappings} - {0}:
        parts = sorted((part for part in mappings if part.inode == inode), key=lambda part: part.offset)
        ends = [0, *(part.offset + part.size for part in parts)]
        if ends[-1] == size and all(part.offset == end for part, end in zip(parts, ends, strict=False)):
            yield parts


def _anonymous(mappings: list[Mapping], size: int, low: int) -> Iterator[list[Mapping]]:
    """Yield memory that could be a guest's.

    Two regions may be next to each other, in any order. Linux then shows them as one mapping.
    """
    parts = [part for part in mappings if not part.inode]
    if size <= low:
        yield from ([part] for part in parts if part.size == size)
        return
    high = size - low
    whole = [part.start for part in parts if part.size == size]
    starts = [(start, start + low) for start in whole] + [(start + high, start) for start in whole]
    starts += [(one.start, two.start) for one in parts for two in parts if (one.size, two.size) == (low, high)]
    for first, second in starts:
        if first != second:
            yield [Mapping(first, low, 0, False, 0), Mapping(second, high, low, False, 0)]


def _begins_with_a_guests_memory(pid: int, part: Mapping) -> bool:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:  # noqa: PTH123
        return os.pread(memory.fileno(), len(_RSDP), part.start + _RSDP_AT) == _RSDP
