"""Directory trees for tests: snapshots of them, and archives that no packer would write."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path

BLOCK = 512
END = bytes(2 * BLOCK)

Entry = tuple[str, int, int, bytes]


def snapshot(root: Path, *, without: Path | None = None, times: bool = True) -> dict[bytes, Entry]:
    """All that is below ``root``, but not ``without``: type, mode, time, and content or where a link leads."""
    found: dict[bytes, Entry] = {}

    def add(path: bytes) -> None:
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)  # noqa: PTH115 (bytes)
        elif stat.S_ISREG(status.st_mode):
            content = Path(os.fsdecode(path)).read_bytes()
        else:
            content = b""
        kind = stat.filemode(status.st_mode)[0]
        mode = 0 if kind == "l" else stat.S_IMODE(status.st_mode)
        if without is not None and path == os.fsencode(without):
            return
        found[path[len(os.fsencode(root)) + 1 :]] = (kind, mode, status.st_mtime_ns if times else 0, content)
        if kind == "d":
            for name in os.listdir(path):  # noqa: PTH208 (bytes)
                add(path + b"/" + name)

    add(os.fsencode(root))
    return found


def names_in(folder: Path) -> list[str]:
    """The names in a directory, sorted."""
    return sorted(path.name for path in folder.iterdir())


def header(name: str, type_: bytes = tarfile.REGTYPE, *, size: int = 0, link: str = "", mode: int = 0o644) -> bytes:
    """One block: the ustar header of a member."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname, info.mode = type_, size, link, mode
    return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "surrogateescape")


def damaged(block: bytes, at: int, data: bytes) -> bytes:
    """Change bytes of a header and correct its checksum."""
    block = block[:at] + data + block[at + len(data) :]
    return block[:148] + b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 8 * 32) + block[156:]


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def member(name: str, content: bytes = b"", type_: bytes = tarfile.REGTYPE, *, link: str = "") -> bytes:
    """A whole member."""
    return header(name, type_, size=len(content), link=link) + padded(content)


def records(type_: bytes, **values: bytes) -> bytes:
    """A PAX header with these records; ``_`` in their names stands for a dot."""
    data = b"".join(_record(name.replace("_", ".").encode(), value) for name, value in values.items())
    return header("pax", type_, size=len(data)) + padded(data)


def _record(name: bytes, value: bytes) -> bytes:
    rest = b" " + name + b"=" + value + b"\n"
    size = len(rest)
    while size != len(rest) + len(str(size)):
        size = len(rest) + len(str(size))
    return b"%d%b" % (size, rest)


def archive(*members: bytes) -> io.BytesIO:
    return io.BytesIO(b"".join(members) + END)
