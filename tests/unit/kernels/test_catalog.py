import io
import lzma
import shlex
import tarfile
from pathlib import Path

import pytest

from squib.errors import ImageCorrupt, NotFound, ToolFailed
from squib.kernels import modules
from squib.kernels.catalog import KernelStore
from squib.paths import Home
from tests.fakes.kernels import VERSION, bzimage, module, vmlinux
from tests.fakes.tools import ToolBox

TREE = f"./usr/lib/modules/{VERSION}"
PACKAGE = {
    f"./boot/vmlinuz-{VERSION}": bzimage(),
    f"./boot/config-{VERSION}": b"CONFIG_MODULE_SIG=y\n",
    "./etc/hostname": b"not wanted",
    f"./{TREE[2:]}/modules.builtin": b"kernel/drivers/virtio/virtio.ko\n",
    f"{TREE}/kernel/fs/overlayfs/overlay.ko.xz": lzma.compress(module("overlay", signature=b"S" * 40)),
    f"{TREE}/kernel/drivers/block/virtio_blk.ko.xz": lzma.compress(module("virtio_blk", "virtio,ring")),
    f"{TREE}/kernel/drivers/virtio/ring.ko.xz": lzma.compress(module("ring")),
    f"{TREE}/kernel/arch/x86/kvm/kvm-amd.ko.xz": lzma.compress(module("kvm_amd", "kvm,ring")),
    f"{TREE}/kernel/arch/x86/kvm/kvm.ko.xz": lzma.compress(module("kvm", signature=b"S" * 40)),
    f"{TREE}/kernel/drivers/char/hw_random/virtio-rng.ko.xz": lzma.compress(module("virtio_rng", "ring")),
    f"{TREE}/kernel/drivers/gpu/unwanted.ko.xz": lzma.compress(module("unwanted")),
}


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToolBox:
    tools = ToolBox(tmp_path, monkeypatch)
    for name in ("unshare", "newuidmap"):
        tools.add(name, "exit 0")
    return tools


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def serve(tools: ToolBox, package: dict[str, bytes]) -> None:
    """An mmdebstrap that brings a package with these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in package.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    path = tools.folder / "package.tar"
    path.write_bytes(buffer.getvalue())
    tools.add("mmdebstrap", f"exec cat {shlex.quote(str(path))}")


@pytest.mark.anyio
async def test_only_the_files_that_boot_a_guest_are_kept(home: Home, tools: ToolBox) -> None:
    serve(tools, PACKAGE)
    kernel = await KernelStore(home).ensure()
    assert kernel.version == VERSION
    assert kernel.path.read_bytes() == vmlinux()
    assert kernel.bzimage is not None and kernel.bzimage.read_bytes() == bzimage()
    assert kernel.config is not None and kernel.config.read_text() == "CONFIG_MODULE_SIG=y\n"
    assert kernel.modules == ("ring", "virtio_blk", "overlay")
    assert kernel.extra_modules == {"nested": ("kvm", "kvm_amd"), "firecracker": ("virtio_rng",)}
    assert kernel.modules_dir is not None
    kept = sorted(path.name for path in kernel.modules_dir.iterdir())
    names = ["kvm.ko", "kvm_amd.ko", "modules.builtin", "overlay.ko", "ring.ko", "virtio_blk.ko", "virtio_rng.ko"]
    assert kept == names
    assert list(home.building.iterdir()) == []
    (call,) = tools.calls("mmdebstrap")
    assert "--variant=extract" in call and "linux-image-cloud-amd64" in call and "://" not in call


@pytest.mark.anyio
async def test_the_stored_modules_load_in_the_stored_order(home: Home, tools: ToolBox) -> None:
    serve(tools, PACKAGE)
    kernel = await KernelStore(home).ensure()
    assert kernel.modules_dir is not None
    for names in (kernel.modules, *((*kernel.modules, *extra) for extra in kernel.extra_modules.values())):
        assert tuple(module.name for module in modules.load_order(kernel.modules_dir, names)) == names


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("config", "signature"), [(b"CONFIG_MODULE_SIG=y\n", b""), (b"CONFIG_MODULE_SIG_FORCE=y\n", b"S" * 40)]
)
async def test_signatures_are_kept_only_for_a_kernel_that_enforces_them(
    home: Home, tools: ToolBox, config: bytes, signature: bytes
) -> None:
    serve(tools, PACKAGE | {f"./boot/config-{VERSION}": config})
    kernel = await KernelStore(home).ensure()
    assert kernel.modules_dir is not None
    assert (kernel.modules_dir / "overlay.ko").read_bytes() == module("overlay", signature=signature)


@pytest.mark.anyio
async def test_another_set_of_modules_is_another_kernel(
    home: Home, tools: ToolBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(tools, PACKAGE)
    store = KernelStore(home)
    first = await store.ensure()
    assert await store.ensure() == first
    assert len(tools.calls("mmdebstrap")) == 1
    monkeypatch.setattr(modules, "GUEST_MODULES", ("overlay",))
    second = await store.ensure()
    assert len(tools.calls("mmdebstrap")) == 2
    assert second.digest != first.digest
    assert store.get().digest == second.digest
    assert store.get(first.digest).modules == first.modules
    store.prune()
    with pytest.raises(NotFound):
        store.get(first.digest)


@pytest.mark.anyio
async def test_a_damaged_kernel_is_found(home: Home, tools: ToolBox) -> None:
    serve(tools, PACKAGE)
    store = KernelStore(home)
    kernel = await store.ensure()
    kernel.path.unlink()
    kernel.path.write_bytes(b"\x7fELF evil")
    with pytest.raises(ImageCorrupt, match="vmlinux"):
        store.get()
    store.remove()
    assert store.list() == []


@pytest.mark.anyio
async def test_the_hints_are_commands_that_repair_it(home: Home, tools: ToolBox) -> None:
    serve(tools, PACKAGE)
    store = KernelStore(home)
    with pytest.raises(NotFound) as absent:
        store.get()
    assert absent.value.hint == "squib kernel build"
    (await store.ensure()).path.unlink()
    with pytest.raises(ImageCorrupt) as damaged:
        store.get()
    assert damaged.value.hint == "squib kernel build --rebuild"
    assert (await store.ensure(rebuild=True)).path.read_bytes() == vmlinux()


@pytest.mark.anyio
@pytest.mark.parametrize("lost", [f"./boot/vmlinuz-{VERSION}", f"./boot/config-{VERSION}"])
async def test_a_package_that_lacks_a_part_is_a_failure_that_leaves_nothing(
    home: Home, tools: ToolBox, lost: str
) -> None:
    serve(tools, {name: data for name, data in PACKAGE.items() if name != lost})
    with pytest.raises(ToolFailed, match="one was expected"):
        await KernelStore(home).ensure()
    assert KernelStore(home).list() == []
    assert list(home.building.iterdir()) == []


@pytest.mark.anyio
async def test_a_path_that_leads_out_of_the_package_is_not_followed(home: Home, tools: ToolBox) -> None:
    serve(tools, PACKAGE | {"./boot/../../../../escaped/vmlinuz-x": b"evil", f"{TREE}/../../../../../x.ko": b"evil"})
    await KernelStore(home).ensure()
    assert not list(home.root.parent.rglob("escaped"))
    assert not list(home.root.parent.rglob("x.ko"))
