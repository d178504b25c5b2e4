import gzip
from pathlib import Path

import pytest

from squib.errors import InvalidArgument
from squib.kernels import bzimage
from tests.fakes import kernels
from tests.fakes.tools import ToolBox

SOURCE = Path("/boot/vmlinuz")


def test_the_version_is_in_the_header_of_one_and_the_banner_of_the_other() -> None:
    assert bzimage.version(kernels.bzimage("6.1.0-9"), source=SOURCE) == "6.1.0-9"
    assert bzimage.version(kernels.vmlinux("6.1.0-9"), source=SOURCE) == "6.1.0-9"


@pytest.mark.parametrize("data", [b"", b"\x7fELF", kernels.vmlinux("")])
def test_a_file_without_a_version_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgument, match="/boot/vmlinuz"):
        bzimage.version(data, source=SOURCE)


def test_the_elf_kernel_comes_out_of_a_bzimage() -> None:
    assert bzimage.extract_elf(kernels.bzimage(), source=SOURCE) == kernels.vmlinux()
    packed = kernels.bzimage(payload=gzip.compress(kernels.vmlinux()))
    assert bzimage.extract_elf(packed, source=SOURCE) == kernels.vmlinux()


def test_the_size_after_a_zstd_payload_is_not_given_to_the_tool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ToolBox(tmp_path, monkeypatch).add("zstd", "tail -c +5")
    packed = kernels.bzimage(payload=b"\x28\xb5\x2f\xfd" + kernels.vmlinux() + b"SIZE")
    assert bzimage.extract_elf(packed, source=SOURCE) == kernels.vmlinux()


@pytest.mark.parametrize(
    "payload", [b"", b"unknown compression", gzip.compress(b"not a kernel", mtime=0), b"\xfd7zXZ\0 damaged"]
)
def test_a_payload_without_a_kernel_is_refused(payload: bytes) -> None:
    with pytest.raises(InvalidArgument, match="/boot/vmlinuz"):
        bzimage.extract_elf(kernels.bzimage(payload=payload), source=SOURCE)
