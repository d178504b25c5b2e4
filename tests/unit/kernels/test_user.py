import hashlib
import os
from pathlib import Path

import pytest

from squib.errors import InvalidArgument
from squib.kernels import modules, user
from tests.fakes.kernels import VERSION, bzimage, elf, module, vmlinux


def test_a_bzimage_without_modules_has_everything_built_in(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(bzimage())
    kernel = user.inspect(path)
    assert (kernel.version, kernel.path, kernel.bzimage) == (VERSION, path, path)
    assert (kernel.modules_dir, kernel.modules) == (None, ())
    assert kernel.digest == f"sha256:{hashlib.sha256(bzimage()).hexdigest()}"
    assert kernel.size_bytes == len(bzimage())


def test_an_elf_kernel_has_no_bzimage(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(vmlinux())
    kernel = user.inspect(path)
    assert (kernel.version, kernel.path, kernel.bzimage) == (VERSION, path, None)


@pytest.mark.parametrize("tree", ["boot/modules", "lib/modules", "usr/lib/modules"])
def test_its_modules_are_found_beside_it(tmp_path: Path, tree: str) -> None:
    folder = tmp_path / tree / VERSION
    folder.mkdir(parents=True)
    (folder / "overlay.ko").write_bytes(module("overlay"))
    (folder / "tun.ko").write_bytes(module("tun"))
    path = tmp_path / "boot" / "vmlinuz"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bzimage())
    kernel = user.inspect(path)
    assert kernel.modules_dir is not None and kernel.modules_dir.resolve() == folder
    assert [found.name for found in modules.load_order(kernel.modules_dir, kernel.modules)] == ["overlay"]
    assert [found.name for found in modules.load_order(kernel.modules_dir, kernel.extra_modules["nested"])] == ["tun"]


def test_modules_of_another_version_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "modules" / "6.1.0-other").mkdir(parents=True)
    path = tmp_path / "vmlinuz"
    path.write_bytes(bzimage())
    assert user.inspect(path).modules_dir is None


@pytest.mark.parametrize(
    "data", [b"", b"#!/bin/sh\n", b"hsqs" + bytes(4096), elf(1), vmlinux().replace(b"\x3e\x00", b"\xb7\x00", 1)]
)
def test_files_without_an_x86_64_kernel_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(data)
    with pytest.raises(InvalidArgument, match="is not a kernel") as caught:
        user.inspect(path)
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_a_version_with_a_path_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(bzimage("../../etc"))
    with pytest.raises(InvalidArgument, match="version"):
        user.inspect(path)


@pytest.mark.parametrize("name", ["nothing", ""])
def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgument, match="cannot be read"):
        user.inspect(tmp_path / name)


def test_a_pipe_is_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidArgument, match="not a regular file"):
        user.inspect(tmp_path / "pipe")
