"""When the host or what a user brings is not as it should be: a clear error with a hint, soon, and nothing left."""

import asyncio
import contextlib
import io
import os
import shutil
import signal
import sqlite3
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from squib import (
    VM,
    BootFailed,
    BootTimeout,
    CommandNotFound,
    DependencyMissing,
    DiskFull,
    ImageCorrupt,
    InvalidArgument,
    NoShell,
    VMConfig,
    VMState,
)
from squib.core.lifecycle.create import create_vm
from squib.core.startup import open_engine
from squib.drivers.registry import find_drivers
from squib.host import proc
from squib.kernels import bzimage
from squib.paths import Home
from tests.processes import until
from tests.vm.conftest import Resources, end_engine, link_or_copy, resources, wait_for_state


@pytest.fixture
def own_home(tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """A state directory for one test, with the cache of the session."""
    own = Home(tmp_path / "own")
    shutil.copytree(home.cache, own.cache, copy_function=link_or_copy)
    monkeypatch.setenv("SQUIB_HOME", str(own.root))
    yield own
    end_engine(own)


def nothing_in(home: Home) -> None:
    assert VM.list() == []
    assert list(home.vms.iterdir()) == []


def test_a_kernel_that_panics(home: Home) -> None:
    start = time.monotonic()
    with pytest.raises(BootFailed, match="panic") as failed, VM(boot_args="rdinit=/nosuch init=/nosuch"):
        pass
    assert "Kernel panic" in failed.value.detail
    assert failed.value.hint
    assert time.monotonic() - start < 20


def test_a_guest_that_never_answers(home: Home) -> None:
    vm = VM(boot_args="rdinit=/nosuch panic=0")
    with pytest.raises(BootTimeout, match="within 6 s") as failed:
        vm.start(boot_timeout=6)
    assert "Kernel panic" in failed.value.detail
    vm.delete()


def test_a_rootfs_with_no_shell(home: Home, tmp_path: Path) -> None:
    rootfs = tmp_path / "empty.squashfs"
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name in ("etc", "tmp", "proc", "sys", "dev", "run", "bin"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(folder)
    subprocess.run(["sqfstar", rootfs], input=tar.getvalue(), check=True, capture_output=True)
    with VM(rootfs_path=rootfs) as vm:
        with pytest.raises(NoShell) as refused:
            vm.run("echo")
        assert "list" in refused.value.hint
        with pytest.raises(CommandNotFound, match="true"):
            vm.run(["true"])


def test_a_rootfs_of_ones_own_as_ext4(home: Home, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in ("etc", "tmp", "proc", "sys", "dev", "run"):
        (tree / name).mkdir(parents=True)
    (tree / "etc" / "marker").write_text("ext4\n")
    rootfs = tmp_path / "rootfs.ext4"
    subprocess.run(["mkfs.ext4", "-q", "-d", tree, rootfs, "16M"], check=True)
    digest = rootfs.read_bytes()
    with VM(rootfs_path=rootfs) as vm, pytest.raises(NoShell):
        vm.run("true")
    assert rootfs.read_bytes() == digest


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b" + bytes(5000), b"QFI\xfb" + bytes(5000), bytes(5000)])
def test_a_rootfs_that_is_none(home: Home, tmp_path: Path, content: bytes) -> None:
    rootfs = tmp_path / "rootfs"
    rootfs.write_bytes(content)
    with pytest.raises(InvalidArgument, match=str(rootfs)) as refused:
        VM(rootfs_path=rootfs)
    assert refused.value.hint


def test_a_kernel_of_ones_own(home: Home, tmp_path: Path) -> None:
    """The bzImage and the modules of squib's kernel, laid out as a user might have them."""
    kernel = next(home.kernels.glob("sha256-*"))
    version = bzimage.version((kernel / "bzImage").read_bytes(), source=kernel)
    shutil.copy(kernel / "bzImage", tmp_path / "vmlinuz")
    shutil.copytree(kernel / "modules", tmp_path / "modules" / version)
    with VM(kernel_path=tmp_path / "vmlinuz", boot_args="squib.test=1") as vm:
        assert vm.run("uname -r").output.strip() == version
        assert "squib.test=1" in vm.run("cat /proc/cmdline").output
        assert vm.info.kernel == str(tmp_path / "vmlinuz")


def test_a_kernel_without_its_modules(home: Home, tmp_path: Path) -> None:
    kernel = next(home.kernels.glob("sha256-*"))
    shutil.copy(kernel / "bzImage", tmp_path / "vmlinuz")
    with pytest.raises(BootFailed, match="disks without a device: base"), VM(kernel_path=tmp_path / "vmlinuz"):
        pass


def test_a_corrupt_image_is_named(own_home: Home) -> None:
    image = next(own_home.images.glob("sha256-*/rootfs.squashfs"))
    damaged = bytearray(image.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    image.unlink()
    image.write_bytes(damaged)
    with pytest.raises(ImageCorrupt) as refused:
        VM()
    assert "squib image" in refused.value.hint
    nothing_in(own_home)


def test_a_truncated_initramfs_and_empty_disk_are_built_again(own_home: Home) -> None:
    with VM() as vm:
        vm.run("true")
    [archive] = own_home.initramfs.glob("*.cpio")
    disks = list(own_home.overlays.glob("*.ext4"))
    whole = archive.read_bytes()
    for path in (archive, *disks):
        path.unlink()  # another state directory may have the same file
        path.touch()
    with VM() as vm:
        assert vm.run("echo it boots").output == "it boots\n"
    assert archive.read_bytes() == whole
    assert any(disk.stat().st_size > 0 for disk in disks)
    nothing_in(own_home)


def test_no_qemu(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine in this process, with all tools but QEMU on its PATH."""
    own, tools = Home(tmp_path / "own"), tmp_path / "tools"
    shutil.copytree(home.cache, own.cache, copy_function=link_or_copy)
    tools.mkdir()
    for name in ("mkfs.ext4", "sqfstar", "mmdebstrap"):
        (tools / name).symlink_to(proc.find_tool(name))
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setattr(proc, "_SYSTEM_PATH", str(tools))

    async def main() -> None:
        async with asyncio.timeout(5), open_engine(own, await find_drivers(own)) as engine:
            with pytest.raises(DependencyMissing, match="qemu-system-x86_64 is not installed") as refused:
                await create_vm(engine, VMConfig(), start=True, on_progress=lambda _: None)
            assert "squib doctor --fix" in refused.value.hint
            assert "qemu-system-x86" in refused.value.hint
            assert resources(own) == Resources([], [], [], [], [], [], [], [])

    asyncio.run(main())


def test_a_full_disk(small_disk: Callable[[int], Home]) -> None:
    """Room for the database, but not for what a VM boots from."""
    own = small_disk(4)
    with pytest.raises(DiskFull, match=str(own.root.parent)) as refused, VM():
        pass
    assert "SQUIB_HOME" in refused.value.hint
    nothing_in(own)


def test_a_disk_that_fills_up_under_a_guest(small_disk: Callable[[int], Home]) -> None:
    own = small_disk(48)
    with VM() as vm:
        filled = vm.run("dd if=/dev/urandom of=/root/big bs=1M count=100 conv=fsync", timeout=60)
        assert not filled.ok and not filled.timed_out
        assert "rror" in filled.stderr
        assert vm.run(["echo", "alive"]).output == "alive\n"
    nothing_in(own)


def test_every_verb_on_a_full_disk_and_when_there_is_room_again(small_disk: Callable[[int], Home]) -> None:
    own = small_disk(64)
    worker, killed = VM().start(), VM().start()
    filler = own.root / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(512))

    assert worker.run(["echo", "alive"]).output == "alive\n"
    assert worker.pause().status is VMState.PAUSED
    assert worker.resume().status is VMState.RUNNING
    assert worker.stop().status is VMState.STOPPED
    os.kill(resources(own).processes[0], signal.SIGKILL)
    wait_for_state(killed, VMState.ERROR, within_s=5)
    for refused in (worker.start, killed.start, VM):
        with pytest.raises(DiskFull):
            refused()

    filler.unlink()
    states = {worker.vm_id: "error", killed.vm_id: "error"}
    until(lambda: recorded_states(own) == states, "the states are not written", within_s=5)
    for vm in (worker, killed):
        assert vm.start().run(["echo", "again"]).output == "again\n"
        vm.delete()
    nothing_in(own)


def recorded_states(home: Home) -> dict[str, str]:
    """The states of all VMs as they are on the disk."""
    with contextlib.closing(sqlite3.connect(home.database)) as database:
        return dict(database.execute("SELECT vm_id, state FROM vms"))
