"""Release archives of a Firecracker that only prints its version."""

import gzip
import hashlib
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

from tests.fakes import elf


def firecracker(version: str = "1.16.1") -> bytes:
    return elf.program(f"Firecracker v{version}\n\n".encode())


def jailer(version: str = "1.16.1") -> bytes:
    return elf.program(f"Jailer v{version}\n\n".encode())


def member(name: str, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    info.mode = 0o755
    return info, content


def members(version: str = "1.16.1", jailer_version: str | None = None) -> list[tuple[tarfile.TarInfo, bytes]]:
    """What a release has: a directory, the two programs, others, and debug files."""
    folder = tarfile.TarInfo(f"release-v{version}-x86_64")
    folder.type = tarfile.DIRTYPE

    def named(name: str, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
        return member(f"release-v{version}-x86_64/{name}", content)

    return [
        (folder, b""),
        named("LICENSE", b"Apache-2.0"),
        named(f"firecracker-v{version}-x86_64.debug", b"symbols"),
        named(f"firecracker-v{version}-x86_64", firecracker(version)),
        named(f"jailer-v{version}-x86_64", jailer(jailer_version or version)),
        named(f"seccompiler-bin-v{version}-x86_64", b"another program"),
    ]


def archive(content: Sequence[tuple[tarfile.TarInfo, bytes]] | None = None) -> bytes:
    """A .tgz of these members, by default those of a release."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in content if content is not None else members():
            tar.addfile(info, io.BytesIO(data))
    return gzip.compress(plain.getvalue(), 1, mtime=0)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def folder(path: Path, version: str = "1.16.1") -> Path:
    """A directory with both programs."""
    path.mkdir()
    (path / "firecracker").write_bytes(firecracker(version))
    (path / "jailer").write_bytes(jailer(version))
    return path
