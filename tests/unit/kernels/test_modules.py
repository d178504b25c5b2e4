import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from squib.errors import InvalidArgument
from squib.kernels import modules
from tests.fakes.kernels import module
from tests.fakes.tools import ToolBox


def add(tree: Path, name: str, depends: str = "", suffix: str = ".ko.xz") -> None:
    packers: dict[str, Callable[[bytes], bytes]] = {".ko": bytes, ".ko.xz": lzma.compress, ".ko.gz": gzip.compress}
    folder = tree / "kernel" / "drivers" / name
    folder.mkdir(parents=True)
    (folder / f"{name}{suffix}").write_bytes(packers[suffix](module(name, depends)))


def names(tree: Path, *wanted: str) -> list[str]:
    return [found.name for found in modules.load_order(tree, wanted)]


def test_each_module_comes_after_all_that_it_depends_on(tmp_path: Path) -> None:
    add(tmp_path, "virtio_net", "net_failover,virtio_ring")
    add(tmp_path, "net_failover", "failover")
    add(tmp_path, "failover")
    add(tmp_path, "virtio_ring", "virtio")
    add(tmp_path, "virtio")
    add(tmp_path, "unwanted")
    assert names(tmp_path, "virtio_net") == ["failover", "net_failover", "virtio", "virtio_ring", "virtio_net"]


def test_a_shared_dependency_is_loaded_once_and_the_wanted_order_is_kept(tmp_path: Path) -> None:
    for name in ("b", "a"):
        add(tmp_path, name, "shared")
    add(tmp_path, "shared")
    assert names(tmp_path, "b", "a") == ["shared", "b", "a"]
    assert names(tmp_path, "a", "b") == ["shared", "a", "b"]


def test_built_in_modules_are_not_loaded(tmp_path: Path) -> None:
    add(tmp_path, "virtio_blk", "virtio,virtio_ring")
    (tmp_path / "modules.builtin").write_text("kernel/drivers/virtio/virtio.ko\nkernel/drivers/virtio/virtio-ring.ko\n")
    assert names(tmp_path, "virtio", "virtio_blk", "ext4") == ["virtio_blk"]


def test_a_missing_dependency_is_refused(tmp_path: Path) -> None:
    add(tmp_path, "overlay", "exportfs")
    with pytest.raises(InvalidArgument, match="overlay needs exportfs"):
        names(tmp_path, "overlay")


def test_modules_that_depend_on_each_other_are_refused(tmp_path: Path) -> None:
    add(tmp_path, "a", "b")
    add(tmp_path, "b", "a")
    with pytest.raises(InvalidArgument, match="a -> b -> a"):
        names(tmp_path, "a")


def test_dashes_and_underscores_are_the_same(tmp_path: Path) -> None:
    add(tmp_path, "crc-itu-t")
    add(tmp_path, "user", "crc_itu-t")
    assert names(tmp_path, "user") == ["crc_itu_t", "user"]
    assert modules.load_order(tmp_path, ["user"])[0].file_name == "crc_itu_t.ko"


@pytest.mark.parametrize("suffix", [".ko", ".ko.xz", ".ko.gz"])
def test_compressed_modules_are_decompressed(tmp_path: Path, suffix: str) -> None:
    add(tmp_path, "squashfs", suffix=suffix)
    assert modules.load_order(tmp_path, ["squashfs"])[0].data == module("squashfs")


def test_zstd_runs_its_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = ToolBox(tmp_path, monkeypatch)
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "overlay.ko.zst").write_bytes(b"\x28\xb5\x2f\xfd" + module("overlay"))
    tools.add("zstd", "tail -c +5")
    assert modules.load_order(tree, ["overlay"])[0].data == module("overlay")
    tools.add("zstd", "echo 'corrupted block' >&2; exit 1")
    with pytest.raises(InvalidArgument, match="corrupted block"):
        modules.load_order(tree, ["overlay"])


@pytest.mark.parametrize(
    "data",
    [
        lzma.compress(module("overlay"))[:-20],
        gzip.compress(module("overlay"))[:-12],
        b"\xfd7zXZ\0 and then nonsense",
        b"\x1f\x8b and then nonsense",
        module("overlay")[:200],
        b"not a module",
        b"",
    ],
)
def test_a_damaged_module_is_refused_by_name(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "overlay.ko").write_bytes(data)
    with pytest.raises(InvalidArgument, match=r"overlay\.ko"):
        modules.load_order(tmp_path, ["overlay"])


def test_only_the_signature_is_removed() -> None:
    signed = modules.Module("a", module("a", signature=b"S" * 77))
    assert modules.without_signature(signed).data == module("a")
    assert modules.without_signature(modules.Module("a", module("a"))).data == module("a")
