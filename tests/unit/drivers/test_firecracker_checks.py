"""Firecracker's checks, and what an engine notices of an install while it runs."""

import asyncio
import os
from pathlib import Path

import pytest

from squib.drivers.base import Problem
from squib.drivers.firecracker.checks import check_all, check_jailer, check_kvm, check_programs, jailer_lacks
from squib.drivers.firecracker.install import install_from, uninstall
from squib.drivers.firecracker.installed import find_release
from squib.drivers.firecracker.programs import FoundPrograms, Programs, find_programs
from squib.host import cgroup
from squib.host.probe import KVMProbe
from squib.models import CheckStatus
from squib.paths import FirecrackerRelease, Home
from tests.fakes import releases

pytestmark = pytest.mark.anyio

INSTALL = "squib install firecracker"
WORKS = KVMProbe(True, "hardware virtualization works", True)
NO_KVM = KVMProbe(False, "guest code is interpreted", True)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    return Home(tmp_path / "home")


async def find(home: Home) -> Programs | Problem:
    return await find_programs(FirecrackerRelease(home.firecracker))


def installed(home: Home) -> FirecrackerRelease:
    release = find_release(home)
    assert release is not None
    return release


async def test_a_missing_firecracker_is_a_warning_with_the_command(home: Home) -> None:
    [check] = check_all(await find(home), WORKS, "root")
    assert (check.name, check.status, str(check.fix)) == ("firecracker", CheckStatus.WARN, INSTALL)
    assert check.detail == "VMs run on QEMU: Firecracker is not installed"


async def test_where_kvm_cannot_run_a_guest_nobody_is_told_to_install_it(home: Home) -> None:
    [check] = check_all(await find(home), NO_KVM, "root")
    assert (check.status, check.fix) == (CheckStatus.OK, None)
    assert check.detail == "Firecracker is not installed; it needs KVM, which cannot run a guest here"


async def test_an_installed_firecracker_is_shown_with_its_version(home: Home, tmp_path: Path) -> None:
    await install_from(home, releases.folder(tmp_path / "given"))
    checks = check_all(await find(home), WORKS, "")
    assert [(check.name, check.status) for check in checks] == [
        ("firecracker", CheckStatus.OK),
        ("firecracker kvm", CheckStatus.OK),
        ("firecracker jailer", CheckStatus.OK),
    ]
    assert checks[0].detail == f"1.16.1 at {home.firecracker.resolve()}/firecracker"


@pytest.mark.parametrize(
    ("program", "content", "reason"),
    [
        ("jailer", None, "jailer"),
        ("jailer", releases.jailer("1.15.1"), "different versions"),
        ("firecracker", releases.firecracker("1.9.0"), "too old"),
        ("firecracker", releases.firecracker() + b"x", "changed since it was installed: firecracker"),
        ("release.json", b"{", "changed since it was installed: release.json"),
    ],
)
async def test_what_is_wrong_with_it_is_told_with_the_command(
    program: str, content: bytes | None, reason: str, home: Home, tmp_path: Path
) -> None:
    await install_from(home, releases.folder(tmp_path / "given"))
    path = installed(home).root / program
    path.unlink()
    if content is not None:
        path.write_bytes(content)
        path.chmod(0o755)
    check = check_programs(await find(home))
    assert (check.status, str(check.fix)) == (CheckStatus.WARN, INSTALL)
    assert reason in check.detail


async def test_programs_of_a_package_have_no_record(home: Home, tmp_path: Path) -> None:
    folder = releases.folder(tmp_path / "path")
    for name in ("firecracker", "jailer"):
        (folder / name).chmod(0o755)
    check = check_programs(await find(home))
    assert (check.status, check.detail) == (CheckStatus.OK, f"1.16.1 at {folder}/firecracker")


def test_kvm_that_cannot_be_opened_has_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path / "kvm"
    assert check_kvm(NO_KVM, device).fix is None
    device.touch()
    check = check_kvm(NO_KVM, device)
    assert (check.status, check.fix) == (CheckStatus.WARN, None)
    assert check.detail == "Firecracker needs KVM, so VMs run on QEMU: guest code is interpreted"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert check_kvm(NO_KVM, device).fix.argv[:3] == ("usermod", "-aG", "kvm")  # type: ignore[union-attr]
    assert check_kvm(WORKS, device).fix is None


@pytest.mark.parametrize(
    ("uid", "capabilities", "missing", "lacks"),
    [
        (1000, "000001ffffffffff", {}, "root"),
        (0, "000001ffffffffff", {"pids": "no"}, "cgroups (memory, cpu, pids)"),
        (0, "00000000a00425fb", {}, "root with CAP_SYS_ADMIN, CAP_MKNOD"),  # in a container
        (0, "000001ffffffffff", {}, ""),
    ],
)
def test_the_jailers_needs_are_told(
    uid: int, capabilities: str, missing: dict[str, str], lacks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: uid)
    monkeypatch.setattr(cgroup, "find_layout", lambda: cgroup.Layout(missing=missing))
    status = tmp_path / "status"
    status.write_text(f"Name:\tsquib\nCapEff:\t{capabilities}\nCapBnd:\t{capabilities}\n")
    assert jailer_lacks(status) == lacks
    check = check_jailer(lacks)
    assert check.status is (CheckStatus.WARN if lacks else CheckStatus.OK)
    assert lacks in check.detail


async def test_an_engine_notices_what_is_installed_and_removed_while_it_runs(home: Home, tmp_path: Path) -> None:
    found = FoundPrograms(await find(home), FirecrackerRelease(home.firecracker))
    assert isinstance(found.now(), Problem)
    for version in ("1.15.1", "1.16.1"):
        await install_from(home, releases.folder(tmp_path / version, version))
        programs = found.now()
        assert isinstance(programs, Programs)
        assert programs == await find(home)
    await uninstall(home)
    assert found.now() == await find(home) == Problem("Firecracker is not installed", hint=INSTALL)


async def test_what_an_engine_found_at_its_start_counts_until_it_changes(home: Home, tmp_path: Path) -> None:
    await install_from(home, releases.folder(tmp_path / "given"))
    broken = Problem("it cannot be executed here")
    found = FoundPrograms(broken, FirecrackerRelease(home.firecracker))
    assert found.now() is broken
    await install_from(home, releases.folder(tmp_path / "other", "1.15.1"))
    assert isinstance(found.now(), Programs)


async def test_both_programs_are_always_of_one_release(home: Home, tmp_path: Path) -> None:
    """Whoever looks while releases replace each other sees two programs of one directory, or a problem."""
    given = [releases.folder(tmp_path / version, version) for version in ("1.15.1", "1.16.1")]
    await install_from(home, given[0])
    found = FoundPrograms(await find(home), FirecrackerRelease(home.firecracker))

    async def install_often() -> None:
        for number in range(6):
            await install_from(home, given[number % 2])

    installing = asyncio.create_task(install_often())
    seen = 0
    while not installing.done():
        programs = found.now()
        if isinstance(programs, Programs):
            seen += 1
            assert programs.vmm.parent == programs.jailer.parent
        await asyncio.sleep(0)
    await installing
    assert seen > 0
