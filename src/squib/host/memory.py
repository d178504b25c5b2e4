"""A guest's memory: created as a memfd, read out of the VMM's process, and given to clones copy-on-write.

A VMM maps a memfd of this module: a fresh one *shared*, so that the memfd is the memory, or a filled one *private*.
Then only the pages that the guest has written since are the process's own. A VMM can also map memory of its own
*private*, or a file that never changes.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from squib.errors import HostError
from squib.host.files import OwnedFd, check_room, copy_extents, copy_file, data_bytes
from squib.undo import Undo

_NAME = "squib-memory"
_MAPPING = re.compile(rf"([0-9a-f]+)-([0-9a-f]+) rw-(.) 0+ \S+ (\d+) +/memfd:{_NAME} \(deleted\)")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_ENTRY_BYTES = 8
_PRESENT, _SWAPPED, _OF_FILE = 1 << 63, 1 << 62, 1 << 61
"""Bits of an entry of /proc/PID/pagemap (Linux, Documentation/admin-guide/mm/pagemap.rst)."""
_SCAN_PAGES = 1 << 16
_COPY_BYTES = 1 << 18
_ZEROS = bytes(_COPY_BYTES)


def fresh(size_bytes: int) -> int:
    """Return a memfd of zeros, whose size cannot change while it is mapped. The caller closes it."""
    fd = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with Undo(lambda: os.close(fd)):
        os.ftruncate(fd, size_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return fd


def fill(memfd: OwnedFd, source: Path) -> None:
    """Give a memfd of zeros the content of a file of its size, and seal it: no process can write to it from then on.

    It may be mapped privately meanwhile. Raises `OSError`.
    """
    with source.open("rb") as file:
        copy_file(file.fileno(), memfd.fileno())
    fcntl.fcntl(memfd.fileno(), fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


@dataclass(frozen=True)
class Mapping:
    """A part of a guest's memory in its VMM's address space, which is at ``offset`` in the whole memory.

    ``inode`` is the mapped file's, or 0 for anonymous memory.
    """

    start: int
    size: int
    offset: int
    shared: bool
    inode: int


Find = Callable[[int, int], Sequence[Mapping]]
"""Finds a guest's memory: takes the VMM's pid and a size in bytes, and returns all parts in the order of their offsets.

Raises `HostError` if the VMM has no such memory, and `OSError`.
"""


@dataclass(frozen=True)
class SharedPages:
    """The pages of a guest's memory that are those of the file ``source``, which never changes.

    ``extents`` are offsets. Holes of a file would not tell: a filesystem's blocks may be larger than pages.
    """

    source: OwnedFd | None = None
    extents: tuple[tuple[int, int], ...] = ()

    def add_to(self, path: Path) -> None:
        """Write the pages to the file ``path``, which `save` has written. Raises `OSError`."""
        if self.source is not None:
            with path.open("r+b") as target:
                for start, end in self.extents:
                    copy_extents(self.source.fileno(), target.fileno(), start, end)


def find_memfd(pid: int, size: int) -> Sequence[Mapping]:
    """Find the memfd of this module that process ``pid`` has mapped. `Find`."""
    found = [
        Mapping(int(start, 16), int(end, 16) - int(start, 16), 0, shared == "s", int(inode))
        for start, end, shared, inode in _MAPPING.findall(Path(f"/proc/{pid}/maps").read_text())
    ]
    if [mapping.size for mapping in found] != [size]:
        raise not_found(pid, size, found)
    return found


def not_found(pid: int, size: int, found: Sequence[Mapping]) -> HostError:
    """Return the error for a process that has not exactly the memory that its guest should have."""
    sizes = ", ".join(f"{mapping.size >> 20} MiB" for mapping in found)
    return HostError(f"process {pid} maps {sizes or 'nothing'} as a guest's memory, not {size >> 20} MiB")


def save(pid: int, size_mib: int, target: int, find: Find = find_memfd) -> SharedPages:
    """Write the memory of the guest in process ``pid`` to the file ``target``. Both have ``size_mib``.

    What the guest has never written stays a hole. Of memory that was mapped privately from a file, only the pages that
    the guest has written since are copied; the others are returned. The guest must not run.

    Raises `HostError` if the process has no such memory or cannot be read, `OSError` if ``target`` cannot be written.
    """
    size = size_mib << 20
    try:
        mappings = find(pid, size)
        file = _file(pid, mappings[0].inode, size) if mappings[0].inode else None
        written = [] if mappings[0].shared else [(part, list(_written(pid, part))) for part in mappings]
        source = OwnedFd(os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise HostError(f"the memory of process {pid} cannot be read: {error.strerror}") from error
    own = [(part.offset + start, part.offset + end) for part, extents in written for start, end in extents]
    check_room(target, (data_bytes(file.fileno()) if file else 0) + sum(end - start for start, end in own))
    if file and mappings[0].shared:
        copy_file(file.fileno(), target)
        return SharedPages()
    os.ftruncate(target, size)
    for part, extents in written:
        for start, end in extents:
            _copy(source.fileno(), part.start + start, target, part.offset + start, end - start)
    return SharedPages(file, tuple(_between(own, size))) if file else SharedPages()


def _between(extents: Iterable[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """Yield what is between the ``extents``, up to ``size``."""
    at = 0
    for start, end in (*extents, (size, size)):
        if start > at:
            yield at, start
        at = end


def _file(pid: int, inode: int, size: int) -> OwnedFd:
    """Open the file that process ``pid`` has mapped, and still has open.

    Unlike the page table, the file also knows pages that are swapped out.
    """
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if not _is_file(entry.stat(), inode, size):
                continue
            file = OwnedFd(os.open(entry, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
            if _is_file(os.fstat(file.fileno()), inode, size):  # the process may have put another file there
                return file
    raise HostError(f"process {pid} has closed its guest's memory")


def _is_file(found: os.stat_result, inode: int, size: int) -> bool:
    return stat.S_ISREG(found.st_mode) and found.st_ino == inode and found.st_size == size


def _written(pid: int, mapping: Mapping) -> Iterator[tuple[int, int]]:
    """Yield the extents of pages that are the process's own, as offsets from the start of a private mapping."""
    begin = end = 0
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:  # noqa: PTH123
        for first in range(0, mapping.size // _PAGE_BYTES, _SCAN_PAGES):
            pagemap.seek((mapping.start // _PAGE_BYTES + first) * _ENTRY_BYTES)
            count = min(_SCAN_PAGES, mapping.size // _PAGE_BYTES - first)
            entries = array.array("Q", pagemap.read(count * _ENTRY_BYTES))
            for number, entry in enumerate(entries, first):
                if not entry & (_PRESENT | _SWAPPED) or entry & _OF_FILE:
                    continue
                offset = number * _PAGE_BYTES
                if offset != end:
                    if end > begin:
                        yield begin, end
                    begin = offset
                end = offset + _PAGE_BYTES
    if end > begin:
        yield begin, end


def _copy(source: int, at: int, target: int, offset: int, size: int) -> None:
    while size:
        data = os.pread(source, min(size, _COPY_BYTES), at)
        if not data:
            raise HostError("the process has ended while its memory was read")
        is_hole = data == _ZEROS[: len(data)]  # a process's pages can be there without having been written
        written = len(data) if is_hole else os.pwrite(target, data, offset)  # less on a full disk; the next call fails
        at, offset, size = at + written, offset + written, size - written
