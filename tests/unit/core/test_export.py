"""Snapshots in files: what an export holds, what an import makes of it, and what it refuses."""

import asyncio
import errno
import io
import json
import os
import subprocess
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from starlette.requests import ClientDisconnect

from squib.core.engine import Engine
from squib.core.lifecycle.create import create_vm
from squib.core.lifecycle.delete import delete_vm
from squib.core.snapshots import archive, catalog, exporting
from squib.core.snapshots.catalog import Snapshot
from squib.core.snapshots.exporting import open_export
from squib.core.snapshots.importing import receiving
from squib.core.snapshots.snapshot import create_snapshot, delete_snapshot
from squib.drivers.base import SavedMemory
from squib.errors import (
    DiskFull,
    HostError,
    ImageCorrupt,
    InvalidArgument,
    NameTaken,
    NotFound,
    Unsupported,
)  # fmt: skip
from squib.host import files
from squib.images import store as images
from squib.kernels import catalog as kernels
from squib.models import VMConfig
from squib.store.records import VMRecord
from tests.fakes import assets
from tests.fakes.engine import Rig

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels and images have a few bytes."""
    monkeypatch.setattr(images, "build_rootfs", assets.build_rootfs)
    monkeypatch.setattr(kernels, "_make", assets.build_kernel)


@pytest.fixture
def other(tmp_path: Path, rig: Rig) -> Rig:
    """Another machine."""
    return Rig(tmp_path / "other")


async def create(engine: Engine, name: str = "web", **fields: object) -> VMRecord:
    config = VMConfig(name=name, cold=True, **fields)
    return await create_vm(engine, config, start=True, on_progress=lambda _: None, boot_timeout_s=5)


async def from_snapshot(engine: Engine, ref: str, *, cold: bool = False) -> VMRecord:
    config = VMConfig(snapshot=ref, **({"cold": True} if cold else {}))
    return await create_vm(engine, config, start=True, on_progress=lambda _: None, boot_timeout_s=5)


def write_disk(engine: Engine, vm: VMRecord, text: str, offset: int = 0) -> None:
    with engine.home.vm(vm.vm_id).overlay.open("r+b") as disk:
        disk.seek(offset)
        disk.write(text.encode().ljust(16))


def disk(engine: Engine, vm: VMRecord, offset: int = 0) -> str:
    with engine.home.vm(vm.vm_id).overlay.open("rb") as disk:
        disk.seek(offset)
        return disk.read(16).decode().strip(" \0")


async def exported(engine: Engine, ref: str) -> bytes:
    export = await open_export(engine, ref)
    data = b"".join([chunk async for chunk in export.chunks()])
    assert len(data) == export.length
    export.close()
    return data


async def pieces(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def imported(engine: Engine, data: bytes, name: str | None = None, size: int = 100_000) -> Snapshot:
    async with receiving(engine, pieces(data, size), name=name) as received:
        return await received.publish()


async def saved(engine: Engine, *, disk_only: bool = False, disk_size_mib: int = 16, **fields: object) -> bytes:
    """A VM, its snapshot ``s1``, and that in a file."""
    vm = await create(engine, disk_size_mib=disk_size_mib, **fields)
    write_disk(engine, vm, "first")
    write_disk(engine, vm, "last", (disk_size_mib << 20) - 16)
    await create_snapshot(engine, "web", name="s1", disk_only=disk_only)
    return await exported(engine, "s1")


def left(engine: Engine) -> list[str]:
    """All that there is of snapshots, kernels and images."""
    folders = (engine.home.snapshots, engine.home.kernels, engine.home.images)
    return sorted(path.name for folder in folders for path in folder.iterdir() if path.name != "names")


async def test_a_snapshot_goes_on_another_machine(rig: Rig, other: Rig) -> None:
    async with rig.running() as engine:
        data = await saved(engine, disk_size_mib=1024, env_vars={"A": "1", "S": "\udcff"})
        source = catalog.find(engine.home, "s1")
    async with other.running() as engine:
        made = await imported(engine, data)
        assert (made.name, made.id != source.id) == ("s1", True)
        own = {"snapshot_id": made.id, "size_bytes": made.describe().size_bytes}
        assert made.describe() == source.describe().model_copy(update=own)
        vm = await from_snapshot(engine, "s1")
        assert isinstance(other.driver.launched[-1].memory, SavedMemory)
        assert (disk(engine, vm), disk(engine, vm, (1 << 30) - 16)) == ("first", "last")
        assert vm.spec.env_vars == {"A": "1", "S": "\udcff"}
        assert engine.kernels.get(str(vm.spec.kernel)).version == assets.KERNEL_VERSION
    async with other.running() as engine:  # in a later engine too
        await from_snapshot(engine, "s1")
        assert sorted(left(engine)) == sorted([made.id, *map(_folder, (vm.spec.kernel, vm.spec.rootfs))])


def tar(*arguments: str | Path) -> bytes:
    """Run GNU tar."""
    return subprocess.run(["tar", *arguments], check=True, capture_output=True).stdout


def _folder(ref: object) -> str:
    return str(ref).replace(":", "-")


async def test_its_size_follows_the_data_and_standard_tools_read_it(rig: Rig, tmp_path: Path) -> None:
    async with rig.running() as engine:
        data = await saved(engine, disk_size_mib=1024)
        source = catalog.find(engine.home, "s1")
        assert len(data) < 200_000  # of a disk of 1 GiB
        file, out = tmp_path / "s1.tar", tmp_path / "out"
        file.write_bytes(data)
        out.mkdir()
        listed = tar("tf", file).decode().split()
        assert listed == [
            "manifest.json", "kernel/bzImage", "kernel/config", "kernel/vmlinux", "image/rootfs.squashfs",
            "memory", "devices", "overlay.ext4",
        ]  # fmt: skip
        tar("xf", file, "-C", out)
        assert files.sparse_sha256(out / "overlay.ext4") == source.manifest.digests["overlay.ext4"]
        assert (out / "memory").read_bytes() == source.paths.memory.read_bytes()
        with tarfile.open(fileobj=io.BytesIO(data)) as read:
            assert [member.name for member in read] == listed
            member = read.getmember("overlay.ext4")
            assert (member.size, member.mode) == (1 << 30, 0o600)
        manifest = json.loads((out / "manifest.json").read_bytes())
        assert (manifest["format"], manifest["snapshot"]["name"]) == (1, "s1")


async def test_a_kernel_and_an_image_that_are_there_are_not_stored_again(rig: Rig) -> None:
    async with rig.running() as engine:
        data = await saved(engine)
        before = left(engine)
        inodes = [path.stat().st_ino for path in engine.home.images.rglob("*")]
        made = await imported(engine, data, "s2")
        assert left(engine) == sorted([*before, made.id])
        assert [path.stat().st_ino for path in engine.home.images.rglob("*")] == inodes
        assert {path.name for path in made.paths.root.iterdir()} == {
            "manifest.json", "memory", "devices", "overlay.ext4",
        }  # fmt: skip
        assert (made.paths.root.stat().st_mode | made.paths.memory.stat().st_mode) & 0o077 == 0


async def test_a_damaged_image_is_replaced_by_the_imported_one(rig: Rig) -> None:
    async with rig.running() as engine:
        data = await saved(engine)
        spec = catalog.find(engine.home, "s1").manifest.spec
        path = engine.images.get(str(spec.rootfs)).path
        path.chmod(0o600)
        path.write_text("damaged")
        with pytest.raises(ImageCorrupt):
            await open_export(engine, "s1")
        await imported(engine, data, "s2")
        assert engine.images.verify(str(spec.rootfs)).path == path
        await open_export(engine, "s1")


async def test_a_disk_alone_can_be_moved(rig: Rig, other: Rig) -> None:
    async with rig.running() as engine:
        data = await saved(engine, disk_only=True)
    async with other.running() as engine:
        assert (await imported(engine, data)).describe().disk_only
        vm = await from_snapshot(engine, "s1")
        assert (disk(engine, vm), isinstance(other.driver.launched[-1].memory, SavedMemory)) == ("first", False)


async def test_another_vmm_refuses_the_memory_by_name_and_the_disk_can_be_used(rig: Rig, other: Rig) -> None:
    async with rig.running() as engine:
        data = await saved(engine)
    other.driver.release = "fake 2.0"
    async with other.running() as engine:
        await imported(engine, data)
        with pytest.raises(Unsupported, match=r"snapshot s1 .* VMM was fake 1.0, here it is fake 2.0") as caught:
            await from_snapshot(engine, "s1")
        assert "--cold" in caught.value.hint
        assert disk(engine, await from_snapshot(engine, "s1", cold=True)) == "first"


async def test_a_driver_that_this_machine_does_not_have_is_named(rig: Rig, other: Rig) -> None:
    async with rig.running() as engine:
        data = await saved(engine, disk_only=True)
    async with other.running() as engine:
        await imported(engine, rewritten(data, set_manifest("snapshot.driver", "other")))
        for cold in (False, True):
            with pytest.raises(Unsupported, match="this host has no driver 'other'"):
                await from_snapshot(engine, "s1", cold=cold)
        assert engine.store.all_vms() == []


async def test_an_accelerator_of_another_machine_is_not_the_vms(rig: Rig, other: Rig) -> None:
    async with rig.running() as engine:
        data = await saved(engine, disk_only=True)
    async with other.running() as engine:
        await imported(engine, rewritten(data, set_manifest("snapshot.accelerator", "kvm")))
        assert (await from_snapshot(engine, "s1")).accelerator == other.driver.accelerator


async def test_names(rig: Rig) -> None:
    async with rig.running() as engine:
        data = await saved(engine)
        with pytest.raises(NameTaken, match="snapshot s1") as caught:
            await imported(engine, data)
        assert "--name" in caught.value.hint
        first, second = await imported(engine, data, "s2"), await imported(engine, data, "s3")
        assert first.id != second.id
        unnamed = await create_snapshot(engine, "web")
        again = await imported(engine, await exported(engine, unnamed.id))  # its name was its ID
        assert again.name == again.id != unnamed.id
        both = await asyncio.gather(*(imported(engine, data, "s4") for _ in range(2)), return_exceptions=True)
        assert sorted(type(result).__name__ for result in both) == ["NameTaken", "Snapshot"]
        assert all(not path.name.startswith(".") for path in engine.home.snapshots.iterdir())


async def test_a_taken_name_is_refused_before_the_rest_is_sent(rig: Rig) -> None:
    async with rig.running() as engine:
        data = await saved(engine)

        async def body() -> AsyncIterator[bytes]:
            yield data[: 64 << 10]
            raise AssertionError("more was read")

        with pytest.raises(NameTaken):
            async with receiving(engine, body()):
                pass


async def test_what_is_deleted_while_it_is_exported_is_whole(rig: Rig, other: Rig) -> None:
    async with rig.running() as engine:
        await saved(engine)
        export = await open_export(engine, "s1")
        await delete_vm(engine, "web")
        await delete_snapshot(engine, "s1")
        for entry in engine.images.list():
            engine.images.remove(entry.name or entry.digest)
        data = b"".join([chunk async for chunk in export.chunks()])
    async with other.running() as engine:
        await imported(engine, data)
        await from_snapshot(engine, "s1")


async def test_what_was_deleted_just_before_is_not_found(rig: Rig) -> None:
    async with rig.running() as engine:
        await saved(engine)
        snapshot = catalog.find(engine.home, "s1")
        await delete_snapshot(engine, "s1")
        with pytest.raises(NotFound, match="s1 was deleted"):
            exporting._open(engine, snapshot)
        with pytest.raises(NotFound):
            await open_export(engine, "s1")


async def test_a_file_that_cannot_be_read_ends_the_export(rig: Rig) -> None:
    async with rig.running() as engine:
        await saved(engine)
        export = await open_export(engine, "s1")
        os.truncate(catalog.find(engine.home, "s1").paths.memory, 1)
        with pytest.raises(HostError, match="memory of snapshot s1 became shorter"):
            async for _ in export.chunks():
                pass


async def test_a_users_own_files_stay_here(rig: Rig) -> None:
    async with rig.running() as engine:
        config = rig.config.model_copy(update={"name": "web", "cold": True})
        await create_vm(engine, config, start=True, on_progress=lambda _: None, boot_timeout_s=5)
        await create_snapshot(engine, "web", name="s1")
        with pytest.raises(Unsupported, match=r"its kernel is the file /.*/kernel of this host"):
            await open_export(engine, "s1")


async def test_a_full_disk_leaves_nothing(rig: Rig, other: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig.running() as engine:
        data = await saved(engine)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with other.running() as engine:
        for module, function in (
            (os, "pwrite"), (os, "ftruncate"), (files, "sync"), (files, "write_atomic"), (files, "sparse_sha256"),
        ):  # fmt: skip
            with monkeypatch.context() as patch:
                patch.setattr(module, function, full)
                with pytest.raises(DiskFull, match="no space left"):
                    await imported(engine, data)
            assert left(engine) == [], function
        with monkeypatch.context() as patch:
            patch.setattr(files, "_kept_bytes", lambda disk: disk.f_bavail * disk.f_frsize - 1000)
            with pytest.raises(DiskFull):
                await imported(engine, data)
        assert left(engine) == []


async def test_what_breaks_off_leaves_nothing(rig: Rig, other: Rig) -> None:
    async with rig.running() as engine:
        data = await saved(engine)

    async def broken(size: int) -> AsyncIterator[bytes]:
        async for piece in pieces(data[:size]):
            yield piece
        raise ClientDisconnect

    async with other.running() as engine:
        for size in range(0, len(data), len(data) // 9):
            with pytest.raises(ClientDisconnect):
                async with receiving(engine, broken(size)):
                    pass
            assert left(engine) == []
        task = asyncio.create_task(imported(engine, data, size=512))
        while left(engine) == []:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert left(engine) == []


async def test_a_file_that_ends_anywhere_is_refused(rig: Rig, other: Rig) -> None:
    async with rig.running() as engine:
        data = await saved(engine)
    async with other.running() as engine:
        for size in (*range(0, len(data), 5000), *range(len(data) - 1024, len(data), 100)):
            with pytest.raises(InvalidArgument, match="truncated"):
                await imported(engine, data[:size])
            assert left(engine) == []
        await imported(engine, data + bytes(9 * 1024))  # tar pads so
        for rest in (b"x", bytes(100_000)):
            with pytest.raises(InvalidArgument, match="something follows"):
                await imported(engine, data + rest, "s2")


Change = Callable[[list[tuple[tarfile.TarInfo, bytes]]], object]


def rewritten(data: bytes, change: Change) -> bytes:
    """The archive with other members; holes are stored as zeros."""
    with tarfile.open(fileobj=io.BytesIO(data)) as old:
        members = [(member, file.read()) for member in old if (file := old.extractfile(member))]
    for member, _ in members:
        member.pax_headers = {}
        member.sparse = None
    change(members)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as new:
        for member, content in members:
            member.size = len(content)
            new.addfile(member, io.BytesIO(content))
    return out.getvalue()


def set_content(name: str, content: bytes) -> Change:
    def change(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        members[:] = [(member, content if member.name == name else old) for member, old in members]

    return change


def set_manifest(path: str, value: object) -> Change:
    """Set a value in the manifest, at ``path`` with dots."""

    def change(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        manifest = json.loads(members[0][1])
        *parents, last = path.split(".")
        place = manifest
        for parent in parents:
            place = place[parent]
        place[last] = value
        members[0] = members[0][0], json.dumps(manifest).encode()

    return change


def rename_member(name: str, to: str) -> Change:
    def change(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        next(member for member, _ in members if member.name == name).name = to

    return change


def set_type(name: str, kind: bytes, link: str = "") -> Change:
    def change(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        found = next(member for member, _ in members if member.name == name)
        found.type, found.linkname = kind, link

    return change


def extra(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    members.append((tarfile.TarInfo("extra"), b"x"))


SHA = "sha256:" + "0" * 64
HOSTILE: list[tuple[Change, str]] = [
    (set_content("memory", b"memorY"), "memory is damaged"),
    (set_content("devices", b""), "devices is damaged"),
    (set_content("image/rootfs.squashfs", b"hsqsother"), "the image is sha256"),
    (set_content("kernel/config", b"other"), "the kernel is sha256"),
    (set_content("manifest.json", b"{"), "manifest.json is invalid"),
    (set_content("manifest.json", b"[" * 100_000), "manifest.json is invalid"),
    (set_content("manifest.json", b"[]"), "format is unknown"),
    (set_content("manifest.json", b'{"format": 2}'), "its format is 2, and this squib reads format 1"),
    (set_content("manifest.json", bytes(9 << 20)), "manifest.json has 9437184 bytes"),
    (lambda members: members.pop(0), "does not begin with manifest.json"),
    (lambda members: members.pop(2), "kernel/config was expected, not 'kernel/vmlinux'"),
    (lambda members: members.pop(), "overlay.ext4 was expected, not its end"),
    (lambda members: members.reverse(), "does not begin with"),
    (extra, "'extra' was not expected"),
    (rename_member("memory", "../memory"), r"memory was expected, not '\.\./memory'"),
    (rename_member("memory", "/etc/passwd"), "memory was expected"),
    (rename_member("memory", "manifest.json"), "memory was expected"),
    (set_type("memory", tarfile.SYMTYPE, "/etc/passwd"), "not a regular file"),
    (set_type("memory", tarfile.LNKTYPE, "devices"), "not a regular file"),
    (set_type("memory", tarfile.DIRTYPE), "not a regular file"),
    (set_type("memory", tarfile.CHRTYPE), "not a regular file"),
    (set_type("memory", tarfile.FIFOTYPE), "not a regular file"),
    (set_manifest("snapshot.spec.rootfs", {"kind": "file", "path": "/etc/shadow"}), "/etc/shadow is not the digest"),
    (set_manifest("snapshot.spec.kernel", {"kind": "file", "path": "/etc/shadow"}), "/etc/shadow is not the digest"),
    (set_manifest("snapshot.spec.kernel.digest", "../../vms"), "is not the digest"),
    (set_manifest("snapshot.spec.kernel.digest", "debian-cloud"), "is not the digest"),
    (set_manifest("snapshot.spec.kernel.digest", SHA), "the kernel is sha256"),
    (set_manifest("snapshot.spec.vcpu_count", 65), "vcpu_count"),
    (set_manifest("snapshot.spec.mem_size_mib", 1 << 40), "mem_size_mib"),
    (set_manifest("snapshot.spec.disk_size_mib", 1 << 40), "disk_size_mib"),
    (set_content("overlay.ext4", bytes(17 << 20)), "overlay.ext4 has 17825792 bytes; the limit is 16777216"),
    (set_content("memory", bytes((128 << 20) + 1)), "memory has 134217729 bytes; the limit is 134217728"),
    (set_manifest("snapshot.spec.boot_args", "a\nb"), "boot_args"),
    (set_manifest("snapshot.spec.cwd", "relative"), "cwd"),
    (set_manifest("snapshot.spec.user", "a\0b"), "user"),
    (set_manifest("snapshot.spec.project", "../x"), "project"),
    (set_manifest("snapshot.spec.runtime", "a/b"), "runtime"),
    (set_manifest("snapshot.spec.env_vars", {"A B": "1"}), "env_vars"),
    (set_manifest("snapshot.name", "../x"), "invalid name"),
    (set_manifest("snapshot.vm_name", "\x1b[2J"), "invalid name"),
    (set_manifest("snapshot.driver", "a b"), "invalid name"),
    (set_manifest("snapshot.accelerator", "\n"), "invalid name"),
    (set_manifest("snapshot.parent", "snapshot/x"), "parent"),
    (set_manifest("snapshot.parent", "vm/../x"), "invalid name"),
    (set_manifest("snapshot.created_at", "2026-01-01T00:00:00"), "created_at"),
    (set_manifest("snapshot.created_at", "9999-12-31T23:59:59Z"), "created_at"),
    (set_manifest("snapshot.squib_version", "\udc80"), "manifest.json is invalid"),
    (set_manifest("snapshot.machine.fingerprint", {"VMM": "\udc80"}), "manifest.json is invalid"),
    (set_manifest("snapshot.machine.fingerprint", {"VMM": "x" * 100_000}), "too long"),
    (set_manifest("snapshot.machine.mem_size_mib", 1), "machine.mem_size_mib"),
    (set_manifest("snapshot.machine", None), "digests has 3 files, not overlay.ext4"),
    (set_manifest("snapshot.digests", {}), "digests has 0 files"),
    (set_manifest("snapshot.digests", {"overlay.ext4": "", "memory": "", "../x": ""}), "digests has 3 files"),
    (set_manifest("snapshot.digests.memory", "0"), "memory is damaged"),
    (set_manifest("kernel.files", ["vmlinux", "bzImage", "../config"]), r"\.\./config is not a kernel's"),
    (set_manifest("kernel.files", ["vmlinux", "bzImage", "config", "modules/a.ko.xz"]), "is not a kernel's"),
    (set_manifest("kernel.files", ["vmlinux", "bzImage", "config", "config"]), "has 4 files"),
    (set_manifest("kernel.files", ["vmlinux"]), "not complete"),
    (set_manifest("kernel.info", {"version": "6.1"}), "not complete"),
    (set_manifest("kernel.info.version", "../6"), "kernel.info.version"),
    (set_manifest("kernel.info.modules", "a /etc/x"), "kernel.info.modules"),
    (set_manifest("kernel.info.other", "x"), "kernel.info.other"),
    (set_manifest("image.files", ["rootfs.squashfs", "x"]), "an image has the file"),
    (set_manifest("image.info", {"x": "y"}), "an image has the file"),
]  # fmt: skip


async def test_a_hostile_file_is_refused_with_the_reason_and_leaves_nothing(rig: Rig, other: Rig) -> None:
    async with rig.running() as engine:
        data = await saved(engine)
    async with other.running() as engine:
        for change, reason in HOSTILE:
            with pytest.raises(InvalidArgument, match=reason) as caught:
                await imported(engine, rewritten(data, change))
            assert caught.value.message.startswith("the file cannot be imported as a snapshot: ")
            assert caught.value.message.count("snapshot: ") == 1
            assert left(engine) == [], reason


async def test_a_rewritten_file_is_accepted(rig: Rig, other: Rig) -> None:
    """The helper of the test above makes valid files."""
    async with rig.running() as engine:
        data = await saved(engine)
    async with other.running() as engine:
        made = await imported(engine, rewritten(data, lambda members: None))
        assert made.describe().disk_size_mib == 16


def sparse(name: str, size: int, numbers: list[object], data: bytes, *, realsize: object = None) -> bytes:
    """A sparse member with this map."""
    text = "".join(f"{number}\n" for number in numbers).encode()
    text += bytes(-len(text) % 512)
    info = tarfile.TarInfo(f"GNUSparseFile.0/{name}")
    info.size = len(text) + len(data)
    info.pax_headers = {
        "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": name,
        "GNU.sparse.realsize": str(size if realsize is None else realsize),
    }  # fmt: skip
    return info.tobuf(tarfile.PAX_FORMAT) + text + data + bytes(-len(data) % 512)


async def members_of(data: bytes, size: int = 1000) -> list[tuple[archive.Member, bytes]]:
    reader = archive.ArchiveReader(pieces(data, size))
    found = []
    while (member := await reader.next_member()) is not None:
        content = await reader.read(member.data_bytes)
        await reader.read(archive.padding(member.data_bytes))
        found.append((member, content))
    await reader.finish()
    return found


@pytest.mark.parametrize(
    ("size", "numbers", "data", "reason"),
    [
        (8192, [1, 0, 4096], b"x" * 4095, "does not match its size"),
        (8192, [1, 0, 4097], b"x" * 4096, "does not match its size"),
        (8192, [1, 4096, 8192], b"x" * 8192, "map of a file is damaged"),
        (8192, [2, 4096, 4096, 0, 4096], b"x" * 8192, "map of a file is damaged"),
        (8192, [2, 0, 8192, 4096, 4096], b"x" * 12288, "map of a file is damaged"),
        (8192, [2, 0, 0, 4096, 4096], b"x" * 4096, "map of a file is damaged"),
        (8192, [1, 1, 4096], b"x" * 4096, "map of a file is damaged"),
        (8192, [10**9], b"", "has 1000000000 parts"),
        (8192, [2**100], b"", "is not a number"),
        (8192, [-1], b"", "is not a number"),
        (8192, ["x"], b"", "is not a number"),
        (8192, [1, "", ""], b"", "is not a number"),
        (8192, ["0" * 600], b"", "is not a number"),
        (8192, [100_000], b"", "truncated"),
        (10**19, [0], b"", "is not a number"),
        (-1, [0], b"", "is not a number"),
    ],
)
async def test_a_hostile_map_is_refused(size: int, numbers: list[object], data: bytes, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        await members_of(sparse("memory", size, numbers, data) + archive.END)


async def test_a_map_that_never_ends_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    info = tarfile.TarInfo("GNUSparseFile.0/memory")
    info.size = 1 << 40
    info.pax_headers = {
        "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "m", "GNU.sparse.realsize": "1",
    }  # fmt: skip
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        yield info.tobuf(tarfile.PAX_FORMAT) + b"1000\n".ljust(512, b"1")
        while True:
            read += 1 << 16
            yield b"1" * (1 << 16)

    with pytest.raises(InvalidArgument, match="map of a file is damaged"):
        await archive.ArchiveReader(endless()).next_member()
    assert read < 1 << 20


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (b"x" * 512, "a header is damaged"),
        (b"PK\3\4".ljust(512, b"\0"), "a header is damaged"),
    ],
)
async def test_what_is_no_archive_is_refused(block: bytes, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        await members_of(block)


@pytest.mark.parametrize("records", [b"", b"x", b"0 a=b\n", b"99 a=b\n", b"6 a=b", b"5 ab\n", b"6 a=b\nz"])
async def test_a_damaged_pax_header_is_refused(records: bytes) -> None:
    head = tarfile.TarInfo("x")
    head.type, head.size = tarfile.XHDTYPE, len(records)
    data = head.tobuf(tarfile.USTAR_FORMAT) + records.ljust(512 if records else 0, b"\0")
    if records:
        with pytest.raises(InvalidArgument, match=r"damaged|not a number"):
            await members_of(data + tarfile.TarInfo("y").tobuf() + archive.END)
    else:
        assert len(await members_of(data + tarfile.TarInfo("y").tobuf() + archive.END)) == 1


async def test_a_large_pax_header_is_refused() -> None:
    head = tarfile.TarInfo("x")
    head.type, head.size = tarfile.XHDTYPE, 1 << 30
    with pytest.raises(InvalidArgument, match="a header has 1073741824 bytes"):
        await members_of(head.tobuf(tarfile.USTAR_FORMAT))


async def test_what_tar_itself_makes_of_a_sparse_file_is_read(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        for offset in (0, 1 << 20, 3 << 20):
            file.seek(offset)
            file.write(b"x" * 4096)
        file.truncate(5 << 20)
    made = tar("c", "--format=posix", "-S", "-C", tmp_path, "file")
    [(member, content)] = await members_of(made)
    assert (member.name, member.size, len(content)) == ("file", 5 << 20, 3 * 4096)
    assert [offset for offset, _ in member.extents] == [0, 1 << 20, 3 << 20]


@pytest.mark.parametrize("size", [0, 1, 4096, 5000, 100_000])
@pytest.mark.parametrize("data", [[], [(0, 1)], [(4095, 2)], [(0, 4096), (8192, 10)], [(50_000, 10), (99_999, 1)]])
async def test_any_file_comes_back(tmp_path: Path, size: int, data: list[tuple[int, int]]) -> None:
    path, back = tmp_path / "file", tmp_path / "back"
    with path.open("wb") as file:
        for offset, length in data:
            file.seek(offset)
            file.write(b"d" * length)
        file.truncate(size)
    with path.open("rb") as file:
        member = archive.member_of("file", file.fileno())
        text = archive.head(member, mtime=0)
        for offset, length in member.extents:
            text += os.pread(file.fileno(), length, offset)
        text += bytes(archive.padding(member.data_bytes)) + archive.END
    for piece in (1, 513, 1 << 20):
        [(found, content)] = await members_of(text, piece)
        assert (found.name, found.size, found.extents) == ("file", size, member.extents)
    back.touch()
    with back.open("r+b") as file:
        file.truncate(size)
        for offset, length in found.extents:
            file.seek(offset)
            file.write(content[:length])
            content = content[length:]
    assert files.sparse_sha256(back) == files.sparse_sha256(path)
    (tmp_path / "t.tar").write_bytes(text)
    (tmp_path / "out").mkdir()
    tar("xf", tmp_path / "t.tar", "-C", tmp_path / "out")
    assert (tmp_path / "out" / "file").read_bytes() == path.read_bytes()


async def test_a_file_in_very_many_parts_is_described_in_fewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_MAX_EXTENTS", 10)
    with (tmp_path / "file").open("wb") as file:
        for page in range(0, 200, 2):
            file.seek(page * 4096)
            file.write(b"x")
        file.truncate(1 << 20)
        member = archive.member_of("file", file.fileno())
        assert 0 < len(member.extents) <= 10
        assert member.data_bytes < 200 * 4096


def test_batches_cover_all_data() -> None:
    extents = [(0, 10), (1 << 20, (3 << 20) + 5), (1 << 30, 1)]
    found = list(archive.batches(extents))
    assert all(sum(length for _, length in batch) <= archive.BATCH_BYTES for batch in found)
    joined: list[tuple[int, int]] = []
    for offset, length in (extent for batch in found for extent in batch):
        if joined and sum(joined[-1]) == offset:
            joined[-1] = joined[-1][0], joined[-1][1] + length
        else:
            joined.append((offset, length))
    assert joined == extents
