"""Files that pass for a kernel, a root filesystem and an agent, where nothing boots."""

from __future__ import annotations

from pathlib import Path

from squib.artifacts.building import Build
from squib.images.runtimes import Runtime
from squib.models import Progress, VMConfig

KERNEL_VERSION = "6.12.1+deb13-cloud"


def make_files(folder: Path) -> VMConfig:
    """A configuration of a kernel and a root filesystem of the user's, both just good enough to be recognised."""
    folder.mkdir(parents=True, exist_ok=True)
    kernel = bytearray(4096)
    kernel[0x1FE:0x206] = b"\x55\xaa\0\0HdrS"
    kernel[0x20E:0x210] = (0x400).to_bytes(2, "little")
    kernel[0x600:0x60A] = b"6.0-fake x"
    (folder / "kernel").write_bytes(kernel)
    (folder / "rootfs").write_bytes(b"hsqs" + bytes(8192))
    (folder / "agent").write_bytes(b"agent")
    return VMConfig(kernel_path=str(folder / "kernel"), rootfs_path=str(folder / "rootfs"))


def write_elf_kernel(path: Path) -> None:
    """Write what passes for an uncompressed kernel."""
    kernel = bytearray(4096)
    kernel[:6] = b"\x7fELF\x02\x01"
    kernel[0x10:0x14] = b"\x02\x00\x3e\x00"
    kernel[0x600:0x700] = b"Linux version 6.0-fake (x) #1".ljust(0x100, b"\0")
    path.write_bytes(kernel)


async def build_rootfs(runtime: Runtime, build: Build, target: Path) -> None:
    """Build an image of a few bytes, in place of `squib.images.debian.build_rootfs`."""
    build.report(Progress(step="squashfs"))
    target.write_bytes(b"hsqs" + runtime.name.encode())


async def build_kernel(build: Build, target: Path) -> dict[str, str]:
    """Build a kernel of a few bytes, in place of what `squib.kernels.catalog` fetches."""
    build.report(Progress(step="modules"))
    for name in ("vmlinux", "bzImage", "config"):
        (target / name).write_text(name)
    (target / "modules").mkdir()
    return {"version": KERNEL_VERSION, "modules": ""}
