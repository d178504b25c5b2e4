"""The cache follows references: what a VM uses stays, what nothing uses goes, damage stops nothing."""

import logging
from pathlib import Path

import pytest

from squib.artifacts.building import Build
from squib.artifacts.cache import ArtifactCache
from squib.core import assets, references
from squib.core.engine import Engine
from squib.core.lifecycle.create import create_vm
from squib.core.lifecycle.delete import delete_vm
from squib.errors import Conflict, InvalidArgument, NotFound
from squib.images.overlay import OverlayStore
from squib.models import CachedRef, HostFileRef, VMConfig, VMState
from squib.store.database import now
from squib.store.records import VMRecord, VMSpec
from tests.fakes.engine import Rig

pytestmark = pytest.mark.anyio

HOST_FILE = HostFileRef(path="/boot/vmlinuz")


async def add_image(engine: Engine, content: str, name: str = "base") -> str:
    """Put an image into the cache, as the new content of ``name``; return its digest."""

    async def make(build: Build, target: Path) -> dict[str, str]:
        (target / "rootfs.squashfs").write_text(f"hsqs{content}")
        return {}

    cache = ArtifactCache(engine.home, "image", engine.home.images, build_hint="", repair_hint="")
    return (await cache.ensure(name, content, make, rebuild=True)).digest


async def add_kernel(engine: Engine, content: str, version: str = "6.1") -> str:
    """Put a kernel into the cache, as the current one; return its digest."""

    async def make(build: Build, target: Path) -> dict[str, str]:
        for name in ("vmlinux", "bzImage", "config"):
            (target / name).write_text(content)
        (target / "modules").mkdir()
        return {"version": version, "modules": ""}

    cache = ArtifactCache(engine.home, "kernel", engine.home.kernels, build_hint="", repair_hint="")
    return (await cache.ensure("debian-cloud", content, make, rebuild=True)).digest


def add_vm(engine: Engine, name: str, *, kernel: str = "", rootfs: str = "") -> VMRecord:
    """Register a VM that uses these digests, and files of the host otherwise."""
    record = VMRecord(
        vm_id=f"vm-{name}",
        name=name,
        state=VMState.STOPPED,
        reason="",
        spec=VMSpec(
            vcpu_count=1,
            mem_size_mib=128,
            disk_size_mib=64,
            kernel=CachedRef(digest=kernel) if kernel else HOST_FILE,
            rootfs=CachedRef(digest=rootfs) if rootfs else HostFileRef(path="/rootfs"),
        ),
        driver="fake",
        accelerator="none",
        machine_id="0" * 32,
        uid=None,
        pid=None,
        bound=False,
        created_at=now(),
        started_at=None,
        stopped_at=None,
    )
    engine.store.add_vm(record)
    return record


def image_digests(engine: Engine) -> set[str]:
    return {image.digest for image in assets.list_images(engine)}


def kernel_digests(engine: Engine) -> set[str]:
    return {kernel.digest for kernel in assets.list_kernels(engine)}


async def test_former_kernels_and_images_stay_as_long_as_a_vm_uses_them(rig: Rig) -> None:
    async with rig.engine() as engine:
        kernels = [await add_kernel(engine, content) for content in ("one", "two", "three")]
        images = [await add_image(engine, content) for content in ("one", "two", "three")]
        add_vm(engine, "web", kernel=kernels[0], rootfs=images[1])
        assert references.referenced_digests(engine) == {kernels[0], images[1]}
        references.prune(engine)
        assert kernel_digests(engine) == {kernels[0], kernels[2]}
        assert image_digests(engine) == {images[1], images[2]}
        assert references.users_of(engine, kernels[0]) == ["web"]


async def test_deleting_the_last_user_removes_the_former_kernel(rig: Rig) -> None:
    async with rig.engine() as engine:
        former = await add_kernel(engine, "one")
        current = await add_kernel(engine, "two")
        for name in ("a", "b"):
            add_vm(engine, name, kernel=former)
        await delete_vm(engine, "a")
        assert kernel_digests(engine) == {former, current}
        await delete_vm(engine, "b")
        assert kernel_digests(engine) == {current}


async def test_a_new_engine_removes_what_nothing_uses(rig: Rig) -> None:
    async with rig.engine() as engine:
        former = await add_kernel(engine, "one")
        current = await add_kernel(engine, "two")
        assert kernel_digests(engine) == {former, current}
    async with rig.engine() as engine:
        assert kernel_digests(engine) == {current}


async def test_the_initramfs_of_a_removed_kernel_goes_and_those_in_use_stay(rig: Rig) -> None:
    async with rig.engine() as engine:
        former = await add_kernel(engine, "one")
        removed = await engine.initramfs.ensure(engine.kernels.get(former), rig.agent_binary)
        current = await add_kernel(engine, "two")
        kept = await engine.initramfs.ensure(engine.kernels.get(current), rig.agent_binary)
        await create_vm(engine, rig.config, start=False, on_progress=lambda _: None)
        [of_host_kernel] = set(engine.home.initramfs.glob("*.cpio")) - {removed, kept}
        references.prune(engine)
        assert set(engine.home.initramfs.glob("*.cpio")) == {kept, of_host_kernel}


async def test_nothing_is_removed_while_an_owner_chooses_its_files(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig.engine() as engine:
        former = await add_kernel(engine, "one")
        current = await add_kernel(engine, "two")
        found = engine.kernels.get(former)

        async def ensure(on_progress: object) -> object:
            return found

        async def prune_and_make_disk(self: OverlayStore, target: Path, *_: object) -> None:
            references.prune(engine)
            target.touch()

        async def prune_and_build(runtime: str, on_progress: object) -> object:
            references.prune(engine)
            return image

        image = engine.images.get(await add_image(engine, "rootfs"))
        monkeypatch.setattr(engine.kernels, "ensure", ensure)
        monkeypatch.setattr(engine.images, "ensure", prune_and_build)
        monkeypatch.setattr(OverlayStore, "create", prune_and_make_disk)
        record = await create_vm(engine, VMConfig(), start=False, on_progress=lambda _: None)
        assert kernel_digests(engine) == {former, current}
        assert references.digests_of(record.spec) == {former, image.digest}


async def test_nothing_is_removed_while_a_record_is_unreadable(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    async with rig.engine() as engine:
        former = await add_kernel(engine, "one")
        await add_kernel(engine, "two")
        add_vm(engine, "web", kernel=former)
        engine.store._db.execute("UPDATE vms SET spec = '{'")
        with caplog.at_level(logging.WARNING, "squib.cache"):
            references.prune(engine)
        assert former in kernel_digests(engine)
        assert "the database record of VM web is damaged" in caplog.text


async def test_damage_stops_neither_lists_nor_builds_nor_the_next_engine(rig: Rig) -> None:
    async with rig.engine() as engine:
        image = await add_image(engine, "one")
        kernel = await add_kernel(engine, "one")
        for digest, folder, kind in ((image, engine.home.images, "image"), (kernel, engine.home.kernels, "kernel")):
            (folder / digest.replace(":", "-") / f"{kind}.json").write_bytes(b"\xff")
        (engine.home.images / "names" / "python3.13.json").write_text("garbage")
        (engine.home.kernels / f"sha256-{'0' * 64}").mkdir()
        add_vm(engine, "web", kernel=kernel, rootfs=image)
    async with rig.engine() as engine:
        [base, python] = assets.list_images(engine)
        assert (base.name, base.digest, base.in_use_by) == ("base", image, ["web"])
        assert "image.json is damaged" in base.damage
        assert (python.name, python.digest) == ("python3.13", "")
        assert "python3.13.json is damaged" in python.damage
        [found] = assets.list_kernels(engine)
        assert (found.version, found.digest, found.in_use_by) == ("", kernel, ["web"])
        assert "kernel.json is damaged" in found.damage
        await create_vm(engine, rig.config, start=False, on_progress=lambda _: None)
        with pytest.raises(Conflict):
            assets.remove_image(engine, "base")
        assets.remove_image(engine, "python3.13")
        assert len(assets.list_images(engine)) == 1
        repaired = await add_image(engine, "one")
        assert repaired == image
        [base] = assets.list_images(engine)
        assert base.damage == ""


async def test_a_kernel_is_removed_by_version_digest_or_first_digits(rig: Rig) -> None:
    async with rig.engine() as engine:
        for ref in ("6.1+deb13-cloud", "digest", "digits"):
            digest = await add_kernel(engine, ref, version="6.1+deb13-cloud")
            by = {"digest": digest, "digits": digest.removeprefix("sha256:")[:12]}
            assets.remove_kernel(engine, by.get(ref, ref))
            assert assets.list_kernels(engine) == []
            with pytest.raises(NotFound):
                assets.remove_kernel(engine, digest)


async def test_a_damaged_kernel_is_removed_by_digest(rig: Rig) -> None:
    async with rig.engine() as engine:
        digest = await add_kernel(engine, "one")
        (engine.home.kernels / digest.replace(":", "-") / "kernel.json").unlink()
        assets.remove_kernel(engine, digest)
        assert assets.list_kernels(engine) == []


async def test_a_kernel_in_use_or_an_ambiguous_version_is_not_removed(rig: Rig) -> None:
    async with rig.engine() as engine:
        former = await add_kernel(engine, "one")
        add_vm(engine, "web", kernel=former)
        current = await add_kernel(engine, "two")
        with pytest.raises(InvalidArgument, match=r"2 kernels match 6\.1"):
            assets.remove_kernel(engine, "6.1")
        with pytest.raises(Conflict, match="is used by web") as refused:
            assets.remove_kernel(engine, former)
        assert refused.value.hint == "squib rm web"
        with pytest.raises(NotFound):
            assets.remove_kernel(engine, former[:10])
        assert kernel_digests(engine) == {former, current}
