"""Kernel modules: the ones a guest needs, their load order and contents.

Dependencies come from the modules themselves: the kernel's build adds a ``depends=`` entry to ``.modinfo``. The file
``modules.dep`` is absent, since ``depmod`` writes it when a package is configured, and squib only unpacks packages.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from squib.errors import InvalidArgument
from squib.kernels.compression import decompress

GUEST_MODULES = (
    "virtio_mmio",
    "virtio_blk",
    "squashfs",
    "crc32c_generic",  # ext4 requests it by an alias
    "ext4",
    "overlay",
    "virtio_net",
    "vmw_vsock_virtio_transport",
)
"""The modules that the agent needs to boot, unless they are built in. Each loads after its dependencies."""

EXTRA_MODULES: Mapping[str, tuple[str, ...]] = {
    "nested": ("kvm_amd", "kvm_intel", "tun", "vhost_vsock"),
    "firecracker": ("virtio_rng", "virtio_balloon"),
}
"""The modules that only some guests load, after `GUEST_MODULES`: those that run VMs, and those of Firecracker.

The agent skips modules whose hardware is missing, such as the KVM module of the other CPU vendor.
"""

_SIGNATURE_MARK = b"~Module signature appended~\n"
_SIGNATURE_INFO = struct.Struct(">8xI")  # struct module_signature: the last field is the length of the signature
_SUFFIXES = (".ko", ".ko.xz", ".ko.gz", ".ko.zst")


@dataclass(frozen=True)
class Module:
    """A module and its decompressed content.

    ``name`` has underscores, as in ``/proc/modules``.
    """

    name: str
    data: bytes

    @property
    def file_name(self) -> str:
        return f"{self.name}.ko"


def canonical_name(name: str) -> str:
    """Replace ``-`` by ``_``: the kernel treats them alike in module names."""
    return name.replace("-", "_")


def module_name(file_name: str) -> str | None:
    """Return the module's name; ``None`` if the file is not a module."""
    for suffix in _SUFFIXES:
        if file_name.endswith(suffix):
            return canonical_name(file_name.removesuffix(suffix))
    return None


def load_order(tree: Path, wanted: Iterable[str]) -> tuple[Module, ...]:
    """Return the ``wanted`` modules and their dependencies in load order.

    Each module comes after those it depends on. ``tree`` is a ``/lib/modules/<version>``. A wanted module that it lacks
    is skipped: it is built in, or the guest reports at boot that it is missing.

    Raises `InvalidArgument` if a dependency is neither in ``tree`` nor built in, if modules depend on each other, or if
    a module is damaged; `DependencyMissing`.
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
    """Remove the signature at the end of a module.

    An emulated guest needs 20 ms to check one. The check has no value there, since the host provides kernel and modules
    alike. A kernel that does not enforce signatures logs an unsigned module and sets the taint ``E``.
    """
    if not module.data.endswith(_SIGNATURE_MARK):
        return module
    end = len(module.data) - len(_SIGNATURE_MARK) - _SIGNATURE_INFO.size
    *_, length = _SIGNATURE_INFO.unpack_from(module.data, end)
    return Module(module.name, module.data[: end - length])


def dependencies(module: bytes, *, source: Path) -> list[str]:
    """Return the modules that a module lists as ``depends=``.

    Raises `InvalidArgument` if it is not a module.
    """
    for entry in elf_section(module, b".modinfo", source=source).split(b"\0"):
        if entry.startswith(b"depends="):
            return [canonical_name(name) for name in entry.decode("ascii")[len("depends=") :].split(",") if name]
    return []


def elf_section(elf: bytes, wanted: bytes, *, source: Path) -> bytes:
    """Return the content of a section of a 64-bit little-endian ELF file.

    Raises `InvalidArgument` if it is absent.
    """
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
