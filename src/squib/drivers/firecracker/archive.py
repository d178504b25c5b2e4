"""Take Firecracker's two programs out of a release archive or a directory.

An archive is hostile input until its digest is checked, and for ``--from`` afterwards too. Only two regular files are
read from it, by their names. Sizes are limited before anything is kept in memory.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zlib
from pathlib import Path
from typing import IO

from squib.drivers.firecracker.releases import ARCHITECTURE
from squib.errors import InvalidArgument
from squib.host.files import open_regular
from squib.paths import FirecrackerRelease

MAX_ARCHIVE_BYTES = 128 << 20
MAX_UNPACKED_BYTES = 512 << 20
MAX_PROGRAM_BYTES = 64 << 20
MAX_MEMBERS = 1000
_MAX_HEADER_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 16

PROGRAMS = ("firecracker", "jailer")
_NAME = rf"(firecracker|jailer)(?:-v\d+\.\d+\.\d+-{ARCHITECTURE})?"
_MEMBER = re.compile(rf"(?:\./)?(?:[^/]+/)?{_NAME}", re.ASCII)
_FILE = re.compile(_NAME, re.ASCII)

_ELF_64_LITTLE_ENDIAN = b"\x7fELF\x02\x01"
_ELF_EXECUTABLE_TYPES = (2, 3)
_ELF_X86_64 = 62
_ELF_HEADER_BYTES = 64


def unpack(archive: Path, release: FirecrackerRelease, scratch: Path) -> None:
    """Write the programs of a release archive to an empty directory.

    ``scratch`` is a path for a temporary file, which the caller removes.

    Raises `InvalidArgument`, and `OSError` if the archive cannot be read.
    """
    _gunzip(archive, scratch)
    with _SmallReads(scratch) as file:
        try:
            found = _extract(file, release)
        except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
            if isinstance(error, InvalidArgument):
                raise
            raise InvalidArgument(f"{archive} is damaged: {error}") from None
    _check_complete(archive, found)


def collect(folder: Path, release: FirecrackerRelease) -> None:
    """Copy the programs from a directory to an empty one.

    Their names are ``firecracker`` and ``jailer``, or those of a release. The plain names are preferred.

    Raises `InvalidArgument`, and `OSError` if they cannot be read.
    """
    names = [entry.name for entry in folder.iterdir()]
    found: dict[str, str] = {}
    for name in sorted(names, key=lambda name: (name not in PROGRAMS, name)):
        match = _FILE.fullmatch(name)
        if match is None or found.get(match[1]) == match[1]:
            continue
        if match[1] in found:
            raise InvalidArgument(f"{folder} has several versions: {found[match[1]]} and {name}")
        found[match[1]] = name
    _check_complete(folder, found)
    for program, name in found.items():
        with open_regular(folder / name) as source:
            _write(source, release.root / program, label=str(folder / name))


def check_elf(path: Path) -> None:
    """Check that a file is a program for this architecture.

    Raises `InvalidArgument`.
    """
    with path.open("rb") as file:
        header = file.read(_ELF_HEADER_BYTES)
    kind, machine = (int.from_bytes(header[at : at + 2], "little") for at in (16, 18))
    if not header.startswith(_ELF_64_LITTLE_ENDIAN) or kind not in _ELF_EXECUTABLE_TYPES:
        raise InvalidArgument(f"{path.name} is not a Linux program (ELF)")
    if machine != _ELF_X86_64:
        raise InvalidArgument(f"{path.name} is a program for another architecture, not {ARCHITECTURE}")


def _gunzip(archive: Path, target: Path) -> None:
    with open_regular(archive) as compressed, target.open("xb") as file:
        try:
            with gzip.GzipFile(fileobj=compressed) as plain:
                done = 0
                while chunk := plain.read(_CHUNK_BYTES):
                    done += len(chunk)
                    if done > MAX_UNPACKED_BYTES:
                        raise InvalidArgument(f"{archive} is too large: more than {MAX_UNPACKED_BYTES >> 20} MiB")
                    file.write(chunk)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InvalidArgument(f"{archive} is not a complete .tgz archive: {error}") from None


class _SmallReads(io.FileIO):
    """A file for `tarfile` that reads no more than a header's size at once.

    A header says how long its extension is, and `tarfile` reads that into memory.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError("a header is too large")
        return super().read(size) or b""


def _extract(file: _SmallReads, release: FirecrackerRelease) -> dict[str, str]:
    found: dict[str, str] = {}
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for number, member in enumerate(tar):
            if number >= MAX_MEMBERS:
                raise InvalidArgument(f"the archive has more than {MAX_MEMBERS} members")
            match = _MEMBER.fullmatch(member.name)
            if match is None or member.isdir():
                continue
            if match[1] in found:
                raise InvalidArgument(f"the archive has more than one {match[1]}: {found[match[1]]} and {member.name}")
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or (content := tar.extractfile(member)) is None:
                raise InvalidArgument(f"{member.name} in the archive is not a regular file")
            found[match[1]] = member.name
            with content:
                _write(content, release.root / match[1], label=member.name)
    return found


def _write(source: IO[bytes], target: Path, *, label: str) -> None:
    left = MAX_PROGRAM_BYTES
    with target.open("xb") as file:
        while chunk := source.read(_CHUNK_BYTES):
            left -= len(chunk)
            if left < 0:
                raise InvalidArgument(f"{label} is too large: more than {MAX_PROGRAM_BYTES >> 20} MiB")
            file.write(chunk)
    target.chmod(0o755)


def _check_complete(source: Path, found: dict[str, str]) -> None:
    missing = [program for program in PROGRAMS if program not in found]
    if missing:
        raise InvalidArgument(
            f"{source} has no {' and no '.join(missing)}",
            hint="use a release archive of Firecracker, or a directory with firecracker and jailer",
        )
