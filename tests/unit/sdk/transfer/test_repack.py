"""An archive from one guest to another: what it may carry, and what it may not."""

from __future__ import annotations

import io
import tarfile
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from squib.errors import ArchiveRefused, NoSuchFile, TransferFailed
from squib.models import FileInfo
from squib.sdk.result import CopyResult
from squib.sdk.transfer.relay import relay
from squib.sdk.transfer.repack import repack
from tests.fakes.trees import archive, header, member, padded, records

CAPABILITY = {"SCHILY.xattr.security.capability": b"\x01\0\0\x02\xff", "SCHILY.xattr.user.note": b"mine"}


def repacked(*members: bytes) -> bytes:
    return b"".join(repack(archive(*members)))


def members(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: member for member in tar}


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o6777, 0o1755, 0o7777])
@pytest.mark.parametrize("type_", [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.LNKTYPE])
def test_no_privileged_mode_is_passed_on(mode: int, type_: bytes) -> None:
    link = "first" if type_ == tarfile.LNKTYPE else ""
    found = members(repacked(member("first"), header("su", type_, mode=mode, link=link)))
    assert found["su"].mode == mode & 0o777


def test_only_extended_attributes_of_users_are_passed_on() -> None:
    data = repacked(records(b"x", **CAPABILITY), member("ping", b"content"))
    assert b"security" not in data
    assert members(data)["ping"].pax_headers == {"SCHILY.xattr.user.note": "mine"}


@pytest.mark.parametrize("type_", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"S", b"?"])
def test_devices_and_what_is_unknown_are_refused(type_: bytes) -> None:
    with pytest.raises(ArchiveRefused, match="'node' in the archive: "):
        repacked(header("node", type_))


def test_an_archive_is_the_same_otherwise() -> None:
    content = bytes(range(256)) * 3000
    found = repacked(
        member(".", type_=tarfile.DIRTYPE),
        member("sub", type_=tarfile.DIRTYPE),
        records(b"x", path="long/é\n".encode() * 50 + b"\xff", mtime=b"-1.000000007", uid=b"3000000"),
        member("cut", content),
        member("link", type_=tarfile.SYMTYPE, link="../elsewhere"),
        member("empty"),
    )
    with tarfile.open(fileobj=io.BytesIO(found), encoding="utf-8", errors="surrogateescape") as tar:
        root, sub, long, link, empty = tar
        assert (root.name, root.isdir(), sub.name, sub.isdir()) == (".", True, "sub", True)
        assert long.name == "long/é\n" * 50 + "\udcff"
        assert (long.pax_headers["mtime"], long.uid) == ("-1.000000007", 3_000_000)
        file = tar.extractfile(long)
        assert file
        assert file.read() == content
        assert (link.issym(), link.linkname, empty.size) == (True, "../elsewhere", 0)


def test_a_header_in_the_content_stays_content() -> None:
    """However the size is given, the destination reads as many bytes of content as this side does."""
    hidden = header("root", mode=0o4755)
    found = members(repacked(records(b"x", size=b"512"), header("file", size=0), hidden, member("last")))
    assert set(found) == {"file", "last"}
    assert found["file"].size == 512


def test_the_error_of_the_source_ends_the_copy() -> None:
    with pytest.raises(TransferFailed, match="input/output error"):
        repacked(member("a", b"content"), records(b"g", SQUIB_error=b"/srv/x: input/output error"))


# --- the whole way -------------------------------------------------------------------------------------------------


class Source:
    """Files of the VM that is copied from."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.closed = False

    async def stat(self, path: str) -> FileInfo:
        return FileInfo(name="d", type="directory", size=0, mode=0o755, uid=0, gid=0, user=None, group=None, mtime_ns=0)  # type: ignore[arg-type]

    async def read_tar(self, path: str, *, xattrs: bool = False) -> AsyncGenerator[bytes, None]:
        try:
            for start in range(0, len(self.data), 1000):
                yield self.data[start : start + 1000]
        finally:
            self.closed = True


class Destination:
    """Files of the VM that is copied to. Takes ``most`` bytes."""

    def __init__(self, most: int = 1 << 30) -> None:
        self.received = b""
        self.most = most

    async def stat(self, path: str) -> FileInfo:
        raise NoSuchFile(path)

    async def write_tar(self, path: str, chunks: AsyncGenerator[bytes, None], **options: Any) -> CopyResult:
        async for chunk in chunks:
            self.received += chunk
            if len(self.received) > self.most:
                break
        await chunks.aclose()
        return CopyResult(1, len(self.received))


async def copy(source: Source, destination: Destination) -> None:
    options: dict[str, Any] = {"owner": None, "mode": None, "keep_owner": True, "on_progress": None}
    await relay(source, ["/d"], destination, "/to", **options)  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_a_copy_between_vms_carries_no_privileges() -> None:
    source = Source(archive(header("su", mode=0o4755), member("file", bytes(100_000))).getvalue())
    destination = Destination()
    await copy(source, destination)
    found = members(destination.received)
    assert (found["su"].mode, found["file"].size) == (0o755, 100_000)
    assert source.closed


@pytest.mark.anyio
@pytest.mark.parametrize("last", [header("node", tarfile.BLKTYPE), padded(b"nonsense")])
async def test_a_hostile_source_fails_the_copy(last: bytes) -> None:
    source = Source(archive(member("file", bytes(100_000)), last).getvalue())
    with pytest.raises(ArchiveRefused):
        await copy(source, Destination())
    assert source.closed


@pytest.mark.anyio
async def test_a_destination_that_takes_no_more_ends_the_source() -> None:
    source = Source(archive(*(member(f"file{number}", bytes(100_000)) for number in range(100))).getvalue())
    await copy(source, Destination(most=1))
    assert source.closed
