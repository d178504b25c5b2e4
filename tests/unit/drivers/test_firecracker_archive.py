"""Release archives are hostile input: two regular files are taken, of a bounded size, or none."""

import contextlib
import gzip
import io
import os
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from squib.drivers.firecracker import archive
from squib.drivers.firecracker.archive import check_elf, collect, unpack
from squib.errors import InvalidArgument
from squib.paths import FirecrackerRelease
from tests.fakes import elf, releases
from tests.fakes.releases import member
from tests.fakes.trees import names_in


@pytest.fixture
def release(tmp_path: Path) -> FirecrackerRelease:
    (tmp_path / "release").mkdir()
    return FirecrackerRelease(tmp_path / "release")


def unpack_bytes(data: bytes, release: FirecrackerRelease) -> None:
    source = release.root.parent / "given.tgz"
    source.write_bytes(data)
    unpack(source, release, release.root.parent / "scratch.tar")


def refused(data: bytes, release: FirecrackerRelease) -> str:
    with pytest.raises(InvalidArgument) as caught:
        unpack_bytes(data, release)
    return caught.value.message


def test_only_the_two_programs_are_unpacked(release: FirecrackerRelease) -> None:
    unpack_bytes(releases.archive(), release)
    assert names_in(release.root) == ["firecracker", "jailer"]
    assert release.vmm.read_bytes() == releases.firecracker()
    assert release.jailer.read_bytes() == releases.jailer()
    assert release.vmm.stat().st_mode & 0o7777 == release.jailer.stat().st_mode & 0o7777 == 0o755


def test_a_name_in_an_archive_is_never_a_path_on_the_disk(release: FirecrackerRelease, tmp_path: Path) -> None:
    names = ["/firecracker", "../../jailer", "a/../../firecracker", "a/b/jailer", "../firecracker", "../jailer"]
    unpack_bytes(releases.archive([member(name, name.encode()) for name in names]), release)
    assert release.vmm.read_bytes() == b"../firecracker"
    assert names_in(release.root) == ["firecracker", "jailer"]
    assert names_in(tmp_path) == ["given.tgz", "release", "scratch.tar"]


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE]
)
def test_a_program_must_be_a_regular_file(kind: bytes, release: FirecrackerRelease) -> None:
    info = tarfile.TarInfo("firecracker")
    info.type, info.linkname = kind, "/etc/passwd"
    assert "firecracker" in refused(releases.archive([(info, b""), member("jailer", b"x")]), release)
    assert not os.path.lexists(release.vmm)


def test_a_program_that_comes_twice_is_refused(release: FirecrackerRelease) -> None:
    data = releases.archive([member("a/jailer", b"x"), member("b/jailer", b"y")])
    assert "more than one jailer: a/jailer and b/jailer" in refused(data, release)


@pytest.mark.parametrize("missing", [3, 4])
def test_both_programs_must_be_there(missing: int, release: FirecrackerRelease) -> None:
    content = releases.members()
    name = Path(content.pop(missing)[0].name).name.partition("-")[0]
    assert f"has no {name}" in refused(releases.archive(content), release)


def test_a_program_that_is_too_large_is_refused(release: FirecrackerRelease, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_PROGRAM_BYTES", 1000)
    assert "too large" in refused(releases.archive([member("firecracker", bytes(1001))]), release)


def test_a_bomb_is_refused_before_it_fills_the_disk(
    release: FirecrackerRelease, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(archive, "MAX_UNPACKED_BYTES", 1 << 20)
    assert "too large" in refused(gzip.compress(bytes(8 << 20), 1), release)
    assert (tmp_path / "scratch.tar").stat().st_size <= 1 << 20


def test_a_header_that_claims_much_takes_no_memory(release: FirecrackerRelease) -> None:
    info = tarfile.TarInfo("long")
    info.type, info.size = tarfile.XHDTYPE, 64 << 20
    data = gzip.compress(info.tobuf(tarfile.USTAR_FORMAT) + bytes(64 << 20), 1)
    tracemalloc.start()
    try:
        assert "a header is too large" in refused(data, release)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_an_archive_of_many_members_is_refused(release: FirecrackerRelease, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBERS", 10)
    assert "more than 10 members" in refused(releases.archive([member(str(n), b"") for n in range(11)]), release)


@pytest.mark.parametrize("cut", [0, 1, 20, 300, -9, -1])
def test_an_archive_that_is_cut_off_is_refused(cut: int, release: FirecrackerRelease) -> None:
    assert "given.tgz" in refused(releases.archive()[:cut], release)


@pytest.mark.parametrize("data", [b"", b"no archive", bytes(2048)])
@pytest.mark.parametrize("compressed", [False, True])
def test_what_is_no_archive_is_refused(data: bytes, compressed: bool, release: FirecrackerRelease) -> None:
    assert "given.tgz" in refused(gzip.compress(data) if compressed else data, release)


def test_random_damage_is_an_error_or_harmless(release: FirecrackerRelease, tmp_path: Path) -> None:
    plain = gzip.decompress(releases.archive())
    for at in range(0, len(plain), 97):
        damaged = plain[:at] + bytes([plain[at] ^ 0xFF]) + plain[at + 1 :]
        with contextlib.suppress(InvalidArgument):
            unpack_bytes(gzip.compress(damaged, 1), release)
        for path in (release.vmm, release.jailer, tmp_path / "scratch.tar"):
            path.unlink(missing_ok=True)


def test_programs_are_copied_from_a_directory(release: FirecrackerRelease, tmp_path: Path) -> None:
    collect(releases.folder(tmp_path / "given"), release)
    assert release.vmm.read_bytes() == releases.firecracker()
    assert release.jailer.stat().st_mode & 0o777 == 0o755


def test_programs_in_a_directory_may_have_their_names_of_a_release(release: FirecrackerRelease, tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(releases.archive()))) as tar:
        for member in tar.getmembers():  # `extractall` has a safe mode only since Python 3.11.4
            if file := tar.extractfile(member):
                path = tmp_path / member.name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(file.read())
                path.chmod(member.mode)
    collect(tmp_path / "release-v1.16.1-x86_64", release)
    assert release.vmm.read_bytes() == releases.firecracker()
    assert release.jailer.read_bytes() == releases.jailer()


def test_plain_names_are_preferred_in_a_directory(release: FirecrackerRelease, tmp_path: Path) -> None:
    given = releases.folder(tmp_path / "given")
    (given / "jailer-v1.9.0-x86_64").write_bytes(b"other")
    collect(given, release)
    assert release.jailer.read_bytes() == releases.jailer()


def test_a_directory_with_several_releases_is_refused(release: FirecrackerRelease, tmp_path: Path) -> None:
    for version in ("1.9.0", "1.16.1"):
        (tmp_path / f"firecracker-v{version}-x86_64").write_bytes(b"x")
    with pytest.raises(InvalidArgument, match="several versions"):
        collect(tmp_path, release)


def test_a_pipe_in_a_directory_does_not_block(release: FirecrackerRelease, tmp_path: Path) -> None:
    given = releases.folder(tmp_path / "given")
    (given / "jailer").unlink()
    os.mkfifo(given / "jailer")
    with pytest.raises(OSError, match="not a regular file"):
        collect(given, release)


def test_a_program_of_this_architecture_passes(tmp_path: Path) -> None:
    (tmp_path / "firecracker").write_bytes(releases.firecracker())
    check_elf(tmp_path / "firecracker")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a Linux program"),
        (b"#!/bin/sh\necho Firecracker v1.16.1\n", "not a Linux program"),
        (b"\x7fELF\x01\x01" + bytes(58), "not a Linux program"),
        (elf.program(b"x", machine=elf.AARCH64), "another architecture"),
    ],
)
def test_other_files_are_no_programs(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "firecracker").write_bytes(content)
    with pytest.raises(InvalidArgument, match=reason):
        check_elf(tmp_path / "firecracker")
