"""The guest's memory, mapped as Firecracker maps it, and the file with the state of the devices.

A stub's guest keeps nothing in its memory. But each time that it is saved, the stub writes a page of it and notes that
in the devices, and a load checks all these pages: so a memory that is not whole, or that of another moment, is found.
"""

from __future__ import annotations

import json
import mmap
import os
import secrets
from typing import Any

from tests.fakes.firecracker.process import host_path, reason

_FORMAT = "stub snapshot 1"
_NORESERVE = 0x4000  # asm-generic/mman.h
_RSDP_AT, _RSDP = 0xE_0000, b"RSD PTR "


class Unloadable(Exception):
    """A snapshot that cannot be loaded; the text is Firecracker's or, for what only the stub checks, its own."""


class Memory:
    """A guest's memory: anonymous, or a private mapping of a file, whose changes stay in this process.

    What does not fit below the addresses of devices is a second region, as in Firecracker.
    """

    def __init__(self, size_mib: int, release: tuple[int, int], path: str | None = None) -> None:
        """Map it. Raises `OSError`."""
        low = min(size_mib, 3072 if release >= (1, 13) else 3328) << 20
        sizes = [low, (size_mib << 20) - low] if size_mib << 20 > low else [low]
        fd, flags = (-1, mmap.MAP_ANONYMOUS) if path is None else (os.open(host_path(path), os.O_RDONLY), 0)
        protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, flags | mmap.MAP_PRIVATE | _NORESERVE
        self._regions = [
            mmap.mmap(fd, size, flags=flags, prot=protection, offset=0 if path is None else at)
            for at, size in zip((0, low), sizes, strict=False)
        ]  # each keeps the file open
        if path is None:
            self._regions[0][_RSDP_AT : _RSDP_AT + len(_RSDP)] = _RSDP
        else:
            os.close(fd)

    def mark(self, number: int) -> str:
        """Write a page of each region; return what is on it."""
        text = secrets.token_hex(16)
        for region in self._regions:
            region[number * mmap.PAGESIZE : number * mmap.PAGESIZE + len(text)] = text.encode()
        return text

    def check(self, marks: list[str]) -> None:
        """Check all pages that were written. Raises `Unloadable`."""
        for number, text in enumerate(marks):
            at = number * mmap.PAGESIZE
            if any(region[at : at + len(text)] != text.encode() for region in self._regions):
                raise Unloadable(f"page {number} of the memory is not as it was when the devices were saved")

    def write_to(self, path: str) -> None:
        """Write a file. Raises `OSError`."""
        fd = os.open(host_path(path), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with os.fdopen(fd, "wb") as file:
            file.writelines(self._regions)


def write_devices(path: str, version: str, state: dict[str, Any]) -> None:
    """Write the state of the devices. Raises `OSError`."""
    fd = os.open(host_path(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    os.write(fd, json.dumps({"format": _FORMAT, "version": version} | state).encode())
    os.close(fd)


def read_devices(path: str, version: str) -> dict[str, Any]:
    """Read what `write_devices` has written. Raises `Unloadable`."""
    failed = "Failed to get snapshot state from file:"
    try:
        with open(host_path(path), "rb") as file:  # noqa: PTH123
            state: dict[str, Any] = json.load(file)
    except OSError as error:
        raise Unloadable(f"{failed} Failed to open snapshot file: {reason(error)}") from None
    except ValueError:
        raise Unloadable(f"{failed} Failed to load snapshot state from file: CRC64 validation failed: 0") from None
    if state["version"] != version:
        raise Unloadable(f"{failed} Failed to load snapshot state from file: Invalid data version: {state['version']}")
    return state
