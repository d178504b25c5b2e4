import stat
from dataclasses import dataclass

from squib.kernels import cpio


@dataclass
class Found:
    mode: int
    inode: int
    owner: tuple[int, int]
    mtime: int
    device: tuple[int, int]
    data: bytes


def read_archive(data: bytes) -> dict[str, Found]:
    """Read an archive independently of the writer, by the kernel's description of the format."""
    found: dict[str, Found] = {}
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        inode, mode, uid, gid, _, mtime, size, _, _, major, minor, name_size, _ = fields
        name = data[at + 110 : at + 110 + name_size]
        assert name.endswith(b"\0")
        at = (at + 110 + name_size + 3) & ~3
        if name == b"TRAILER!!!\0":
            assert data[at:] == b""
            return found
        found[name[:-1].decode()] = Found(mode, inode, (uid, gid), mtime, (major, minor), data[at : at + size])
        at = (at + size + 3) & ~3


def written(*entries: cpio.Entry) -> bytes:
    return b"".join(cpio.archive(entries))


def test_files_directories_and_devices_read_back() -> None:
    found = read_archive(
        written(
            cpio.directory("dev"),
            cpio.character_device("dev/console", 5, 1),
            cpio.regular("init", b"#!", executable=True),
            cpio.regular("list", b"12345"),
            cpio.regular("empty", b""),
        )
    )
    assert list(found) == ["dev", "dev/console", "init", "list", "empty"]
    assert found["dev"].mode == stat.S_IFDIR | 0o755
    assert found["dev/console"].mode == stat.S_IFCHR | 0o600
    assert found["dev/console"].device == (5, 1)
    assert found["init"].mode == stat.S_IFREG | 0o755
    assert found["list"].mode == stat.S_IFREG | 0o644
    assert (found["list"].data, found["empty"].data) == (b"12345", b"")


def test_entries_belong_to_root_and_have_no_time_and_distinct_inodes() -> None:
    found = read_archive(written(*(cpio.regular(name, b"x") for name in "abc")))
    assert {entry.owner for entry in found.values()} == {(0, 0)}
    assert {entry.mtime for entry in found.values()} == {0}
    assert len({entry.inode for entry in found.values()}) == 3


def test_names_and_data_of_every_length_stay_aligned() -> None:
    entries = [cpio.regular("n" * length, b"d" * length) for length in range(1, 12)]
    assert [len(entry.data) for entry in read_archive(written(*entries)).values()] == list(range(1, 12))


def test_an_empty_archive_is_its_trailer() -> None:
    assert read_archive(written()) == {}
