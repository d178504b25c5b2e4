"""Copies keep holes and, with the owner, the extended attributes of the ``user`` namespace."""

import os
from pathlib import Path

import pytest

from squib.errors import ArchiveRefused, SquibError
from squib.sdk.syncfiles import Files
from squib.sdk.transfer.localfiles import write_sparse
from squib.sdk.transfer.tar import TarReader
from squib.sdk.transfer.unpack import unpack
from tests.fakes.files import FakeFiles
from tests.fakes.trees import archive, member, records

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can keep owners")
VALUE = b"value\xff\0=\n"
MIB = 1 << 20


def test_a_copy_with_owners_keeps_attributes_both_ways(files: Files, guest: FakeFiles, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"content")
    for path in (tree, tree / "file"):
        os.setxattr(path, "user.a", VALUE)
        os.setxattr(path, "user.empty", b"")
    files.upload(tree, "/tree", keep_owner=True)
    files.upload(tree / "file", "/new/single", keep_owner=True)
    files.download("/tree", tmp_path / "back", keep_owner=True)
    files.download("/new/single", tmp_path / "single", keep_owner=True)
    for path in (
        guest.root / "tree", guest.root / "tree" / "file", guest.root / "new" / "single", tmp_path / "back",
        tmp_path / "back" / "file", tmp_path / "single",
    ):  # fmt: skip
        assert (os.getxattr(path, "user.a"), os.getxattr(path, "user.empty")) == (VALUE, b"")
    assert (tmp_path / "single").read_bytes() == b"content"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "guest", "single", "tree"]
    files.upload(tree, "/plain")
    files.upload(tree / "file", "/plain/single")
    assert os.listxattr(guest.root / "plain") == os.listxattr(guest.root / "plain" / "single") == []


@pytest.mark.parametrize("keep", [True, False])
def test_a_guest_sets_no_other_attributes_on_this_machine(tmp_path: Path, keep: bool) -> None:
    keys = ("security.capability", "trusted.a", "system.posix_acl_access", "user.a")
    header = records(b"x", **{f"SCHILY.xattr.{key}": b"\1\0\0\2" for key in keys})
    unpack(archive(header, member("file", b"x")), tmp_path, keep_owner=keep)
    assert os.listxattr(tmp_path / "file") == (["user.a"] if keep else [])


@pytest.mark.parametrize("name", ["user.", "user." + "x" * 251, "user.a\0b"])
def test_an_invalid_attribute_is_refused(tmp_path: Path, name: str) -> None:
    header = records(b"x", **{f"SCHILY.xattr.{name}": b"x"})
    with pytest.raises(ArchiveRefused, match="extended attribute"):
        list(TarReader(archive(header, member("file"))))
    with pytest.raises(SquibError):
        unpack(archive(header, member("file")), tmp_path, keep_owner=True)


def test_zeros_become_holes(files: Files, guest: FakeFiles, tmp_path: Path) -> None:
    data = b"x" * 4096 + bytes(20 * MIB) + b"y" + bytes(10 * MIB)
    (guest.root / "dir").mkdir()
    (guest.root / "dir" / "file").write_bytes(data)
    files.download("/dir/file", tmp_path / "file")
    files.download("/dir", tmp_path / "dir")
    for path in (tmp_path / "file", tmp_path / "dir" / "file"):
        assert path.read_bytes() == data
        assert path.stat().st_blocks * 512 <= 128 << 10


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        bytes(100),
        bytes(16 << 10),
        bytes((16 << 10) + 1),
        b"x" + bytes(64 << 10) + b"y",
        bytes(64 << 10) + b"y",
    ],
)
def test_what_is_written_with_holes_is_exact(tmp_path: Path, data: bytes) -> None:
    fd = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    for piece in (data, data):
        write_sparse(fd, piece)
    os.ftruncate(fd, 2 * len(data))
    os.close(fd)
    assert (tmp_path / "file").read_bytes() == data + data
