"""Kernel modules: which ones a guest needs, in which order they load, and their plain bytes.

Dependencies are read from the modules themselves (the ``depends=`` entry that the kernel's build puts into
``.modinfo``), not from ``modules.dep``: that file is made by ``depmod`` when a package is configured, and squib
unpacks packages without configuring them.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from squib.errors import InvalidArgument
from squib.kernels.compression import decompress

GUEST_MODULES = (
    "virtio_mmio",
    "virtio_blk",
    "squashfs",
    "crc32c_generic",  # ext4 asks for it by an alias
    "ext4",
    "overlay",
    "virtio_net",
    "vmw_vsock_virtio_transport",
)
"""What the agent's boot needs where the kernel does not have it built in. Each is loaded after what it depends on."""

_SIGNATURE_MARK = b"~Module signature appended~\n"
_SIGNATURE_INFO = struct.Struct(">8xI")  # struct module_signature: the length of the signature before it is last
_SUFFIXES = (".ko", ".ko.xz", ".ko.gz", ".ko.zst")


@dataclass(frozen=True)
class Module:
    """A module and its plain (not compressed) content. ``name`` has underscores, as in ``/proc/modules``."""

    name: str
    data: bytes

    @property
    def file_name(self) -> str:
        return f"{self.name}.ko"


def canonical_name(name: str) -> str:
    """The kernel takes ``-`` and ``_`` in the names of modules for the same."""
    return name.replace("-", "_")


def module_name(file_name: str) -> str | None:
    """The module in a file of this name; ``None`` if it is not a module."""
    for suffix in _SUFFIXES:
        if file_name.endswith(suffix):
            return canonical_name(file_name.removesuffix(suffix))
    return None


def load_order(tree: Path, wanted: Iterable[str]) -> tuple[Module, ...]:
    """The modules of the directory ``tree`` that ``wanted`` comes to: each after all those that it depends on.

    ``tree`` is a ``/lib/modules/<version>``. A wanted name that is not there is left out: it is built in, or the kernel
    lacks it, and the guest's boot says so. Raises `InvalidArgument` for a dependency that is neither there nor built
    in and for a damaged module, `DependencyMissing`.
    """
    files = _module_files(tree)
    builtin = _builtin_names(tree)
    loaded: dict[str, Module] = {}
    visiting: list[str] = []

    def visit(name: str) -> None:
        if name in loaded or name in builtin:
            return
        if name in visiting:
            raise InvalidArgument(f"kernel modules in {tree} depend on each other: {' -> '.join([*visiting, name])}")
        if name not in files:
            raise InvalidArgument(f"kernel module {visiting[-1]} needs {name}, which is not in {tree}")
        data = decompress(files[name].read_bytes(), source=files[name])
        visiting.append(name)
        for dependency in dependencies(data, source=files[name]):
            visit(dependency)
        visiting.pop()
        loaded[name] = Module(name, data)

    for name in map(canonical_name, wanted):
        if name in files:
            visit(name)
    return tuple(loaded.values())


def _module_files(tree: Path) -> dict[str, Path]:
    found = {}
    for folder, _, names in os.walk(tree):
        for file_name in names:
            if (name := module_name(file_name)) is not None:
                found[name] = Path(folder, file_name)
    return found


def _builtin_names(tree: Path) -> set[str]:
    try:
        lines = (tree / "modules.builtin").read_text().splitlines()
    except FileNotFoundError:
        return set()
    return {name for line in lines if (name := module_name(Path(line).name)) is not None}


def without_signature(module: Module) -> Module:
    """The module without the signature at its end.

    Checking one takes an emulated guest 20 ms, and says nothing there: module and kernel come from the same initramfs
    and host. A kernel that does not insist on signatures notes an unsigned module in its log and as taint ``E``.
    """
    if not module.data.endswith(_SIGNATURE_MARK):
        return module
    end = len(module.data) - len(_SIGNATURE_MARK) - _SIGNATURE_INFO.size
    *_, length = _SIGNATURE_INFO.unpack_from(module.data, end)
    return Module(module.name, module.data[: end - length])


def dependencies(module: bytes, *, source: Path) -> list[str]:
    """The modules that this one names as ``depends=``. Raises `InvalidArgument` if it is no module."""
    for entry in elf_section(module, b".modinfo", source=source).split(b"\0"):
        if entry.startswith(b"depends="):
            return [canonical_name(name) for name in entry.decode("ascii")[len("depends=") :].split(",") if name]
    return []


def elf_section(elf: bytes, wanted: bytes, *, source: Path) -> bytes:
    """The content of a section of a 64-bit little-endian ELF file. Raises `InvalidArgument` if there is none."""
    try:
        if elf[:6] != b"\x7fELF\x02\x01":
            raise InvalidArgument(f"{source} is not a kernel module for a 64-bit guest")
        (table,) = struct.unpack_from("<Q", elf, 0x28)
        size, count, names_index = struct.unpack_from("<HHH", elf, 0x3A)
        sections = [struct.unpack_from("<II16xQQ", elf, table + size * index) for index in range(count)]
        names = sections[names_index][2]
        for name, _, offset, length in sections:
            if elf.startswith(wanted + b"\0", names + name):
                return elf[offset : offset + length]
    except (struct.error, IndexError):
        raise InvalidArgument(f"{source} is a damaged ELF file") from None
    raise InvalidArgument(f"{source} has no section {wanted.decode()}: it is not a kernel module")
