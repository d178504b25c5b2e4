"""Installing Firecracker: both programs or none, whatever happens on the way."""

import asyncio
import os
import platform
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from squib.drivers.firecracker import install, installed
from squib.drivers.firecracker import releases as known
from squib.drivers.firecracker.install import install_from, install_release, uninstall
from squib.drivers.firecracker.installed import find_release
from squib.drivers.firecracker.version import MINIMUM_VERSION
from squib.errors import DiskFull, DownloadFailed, HostError, InvalidArgument, SquibError, Unsupported
from squib.host import files, processes
from squib.host.locks import FileLock
from squib.models import Progress
from squib.paths import Home
from tests.fakes import elf, releases
from tests.fakes.trees import names_in
from tests.fakes.web import Web

pytestmark = pytest.mark.anyio

ARCHIVE = releases.archive()
DIGEST = releases.sha256(ARCHIVE)
PATH = "/v1.16.1/firecracker-v1.16.1-x86_64.tgz"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A mirror with release 1.16.1, whose digest is known."""
    monkeypatch.setitem(known.SHA256, (1, 16, 1), DIGEST)
    with Web().running() as web:
        web.serve(PATH, ARCHIVE)
        yield web


@pytest.fixture
def older(tmp_path: Path) -> Path:
    return releases.folder(tmp_path / "older", "1.15.1")


def programs(home: Home) -> tuple[bytes, bytes] | None:
    """What is installed, as a launch finds it."""
    release = find_release(home)
    return None if release is None else (release.vmm.read_bytes(), release.jailer.read_bytes())


def pair(version: str) -> tuple[bytes, bytes]:
    return releases.firecracker(version), releases.jailer(version)


def check_tidy(home: Home) -> None:
    """Nothing is left but the link and what it names."""
    entries = names_in(home.bin) if home.bin.exists() else []
    release = find_release(home)
    assert entries == ([] if release is None else ["firecracker", release.root.name])
    assert not home.building.exists() or names_in(home.building) == []


async def test_a_release_is_downloaded_checked_and_installed(home: Home, web: Web) -> None:
    steps: list[Progress] = []
    outcome = await install_release(home, base_url=web.url, on_progress=steps.append)
    assert (outcome.changed, web.paths) == (True, [PATH])
    assert programs(home) == pair("1.16.1")
    release, record = outcome.installed.release, outcome.installed.record
    assert release.root == home.firecracker.resolve() and release.root.name.startswith("firecracker-v1.16.1-")
    assert (record.version, record.archive_sha256) == ("1.16.1", DIGEST)
    assert record.files == {
        "firecracker": releases.sha256(releases.firecracker()),
        "jailer": releases.sha256(releases.jailer()),
    }
    assert [step.step for step in steps][0 :: len(steps) - 1] == ["download", "check"]
    check_tidy(home)


async def test_nothing_is_downloaded_twice(home: Home, web: Web) -> None:
    first = await install_release(home, base_url=web.url)
    again = await install_release(home, "v1.16.1", base_url=web.url)
    assert (again.changed, again.installed, len(web.paths)) == (False, first.installed, 1)


async def test_a_damaged_program_is_replaced(home: Home, web: Web) -> None:
    outcome = await install_release(home, base_url=web.url)
    outcome.installed.release.jailer.write_bytes(b"damage")
    assert (await install_release(home, base_url=web.url)).changed
    assert programs(home) == pair("1.16.1")
    check_tidy(home)


async def test_another_release_replaces_both_programs(home: Home, web: Web, older: Path) -> None:
    await install_from(home, older)
    assert programs(home) == pair("1.15.1")
    await install_release(home, base_url=web.url)
    assert programs(home) == pair("1.16.1")
    check_tidy(home)


async def test_another_content_than_the_pinned_is_refused(home: Home, web: Web, older: Path) -> None:
    await install_from(home, older)
    web.serve(PATH, ARCHIVE + b"x")
    with pytest.raises(DownloadFailed) as caught:
        await install_release(home, base_url=web.url)
    assert DIGEST in caught.value.message and releases.sha256(ARCHIVE + b"x") in caught.value.message
    assert programs(home) == pair("1.15.1")
    check_tidy(home)


async def test_a_version_without_a_known_digest_needs_one(home: Home, web: Web) -> None:
    content = releases.archive(releases.members("1.99.0"))
    web.serve("/v1.99.0/firecracker-v1.99.0-x86_64.tgz", content)
    with pytest.raises(InvalidArgument, match=r"the SHA-256 of Firecracker 1\.99\.0 is not known") as caught:
        await install_release(home, "1.99.0", base_url=web.url)
    assert "--sha256 HEX" in caught.value.hint and "--from FILE" in caught.value.hint
    assert web.paths == [] and not home.root.exists()
    for digest in (releases.sha256(content), f"sha256:{releases.sha256(content).upper()}"):
        await install_release(home, "1.99.0", sha256=digest, base_url=web.url)
    assert programs(home) == pair("1.99.0")
    assert len(web.paths) == 1


@pytest.mark.parametrize(
    ("version", "error"), [("1.9.1", Unsupported), ("latest", InvalidArgument), ("1.16", InvalidArgument)]
)
async def test_a_version_is_checked_before_anything_is_done(version: str, error: type[SquibError], home: Home) -> None:
    with pytest.raises(error):
        await install_release(home, version)
    assert not home.root.exists()


async def test_a_digest_of_another_form_is_refused(home: Home) -> None:
    with pytest.raises(InvalidArgument, match="64 hex digits"):
        await install_release(home, sha256="abc")


async def test_a_host_of_another_architecture_is_refused(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(Unsupported, match="this host is aarch64"):
        await install_release(home)
    with pytest.raises(Unsupported, match="this host is aarch64"):
        await install_from(home, Path("/nowhere"))


async def test_an_archive_is_installed_without_a_known_digest(home: Home, tmp_path: Path) -> None:
    content = releases.archive(releases.members("1.99.0"))
    (tmp_path / "given.tgz").write_bytes(content)
    outcome = await install_from(home, tmp_path / "given.tgz")
    assert outcome.installed.record.archive_sha256 == releases.sha256(content)
    assert programs(home) == pair("1.99.0")
    assert not (await install_from(home, tmp_path / "given.tgz")).changed
    check_tidy(home)


async def test_a_given_digest_is_checked(home: Home, tmp_path: Path) -> None:
    (tmp_path / "given.tgz").write_bytes(ARCHIVE)
    with pytest.raises(InvalidArgument) as caught:
        await install_from(home, tmp_path / "given.tgz", sha256="0" * 64)
    assert "0" * 64 in caught.value.message and DIGEST in caught.value.message
    await install_from(home, tmp_path / "given.tgz", sha256=DIGEST)
    with pytest.raises(InvalidArgument, match="--from names a directory"):
        await install_from(home, tmp_path, sha256=DIGEST)


async def test_a_given_version_is_checked(home: Home, older: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"this is Firecracker 1\.15\.1, not 1\.16\.1"):
        await install_from(home, older, "1.16.1")
    await install_from(home, older, "1.15.1")


async def refuse(home: Home, source: Path) -> str:
    before = programs(home)
    with pytest.raises(SquibError) as caught:
        await install_from(home, source)
    assert isinstance(caught.value, InvalidArgument | Unsupported)
    assert programs(home) == before
    check_tidy(home)
    return caught.value.message


async def test_a_source_that_cannot_be_read_is_refused(home: Home, tmp_path: Path) -> None:
    assert "nowhere cannot be read: No such file" in await refuse(home, tmp_path / "nowhere")
    os.mkfifo(tmp_path / "fifo")
    assert "it is not a regular file" in await refuse(home, tmp_path / "fifo")
    given = releases.folder(tmp_path / "given")
    (given / "jailer").unlink()
    (given / "jailer").symlink_to("nowhere")
    assert "jailer cannot be read" in await refuse(home, given)


@pytest.mark.parametrize(
    ("firecracker", "jailer", "reason"),
    [
        (releases.firecracker("1.9.1"), releases.jailer("1.9.1"), "1.9.1 is too old: squib needs 1.10 or later"),
        (releases.firecracker("1.16.1"), releases.jailer("1.16.0"), "firecracker is 1.16.1, jailer is 1.16.0"),
        (releases.jailer(), releases.firecracker(), "this is not Firecracker's firecracker"),
        (elf.program(b"Firecracker v1.16.1", 1), releases.jailer(), "firecracker --version failed"),
        (releases.firecracker(), elf.program(b""), "this is not Firecracker's jailer"),
        (releases.firecracker(), elf.program(b"Jailer v1.16.1", machine=elf.AARCH64), "another architecture"),
        (b"#!/bin/sh\n", releases.jailer(), "not a Linux program"),
        (releases.firecracker()[:64], releases.jailer(), "firecracker does not run on this host"),
    ],
)
async def test_programs_that_do_not_work_are_refused(
    firecracker: bytes, jailer: bytes, reason: str, home: Home, tmp_path: Path, older: Path
) -> None:
    await install_from(home, older)
    given = releases.folder(tmp_path / "given")
    (given / "firecracker").write_bytes(firecracker)
    (given / "jailer").write_bytes(jailer)
    assert reason in await refuse(home, given)


async def test_a_program_that_hangs_is_killed(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "_RUN_TIMEOUT_S", 0.1)
    given = releases.folder(tmp_path / "given")
    (given / "jailer").write_bytes(elf.hanging())
    assert "jailer did not exit within 0.1 s" in await refuse(home, given)
    assert processes.holders(home.tools_lock(installed.LOCK)) == []


async def test_a_disk_that_allows_no_programs_is_told(home: Home, older: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("squib.drivers.firecracker.install.os.access", lambda *_: False)
    with pytest.raises(HostError, match="mounted with noexec"):
        await install_from(home, older)
    check_tidy(home)


DISK_WRITES = (
    (files, "sync"),
    (files, "write_atomic"),
    (Path, "rename"),
    (Path, "replace"),
    (Path, "symlink_to"),
)


@pytest.mark.parametrize("step", range(11))
async def test_a_full_disk_leaves_the_old_pair(
    step: int, home: Home, web: Web, older: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each flush and each rename fails in turn. The last one is a flush after the link has changed."""
    await install_from(home, older)
    calls = 0

    def fail_at_step() -> None:
        nonlocal calls
        calls += 1
        if calls == step + 1:
            raise OSError(28, "No space left on device")

    for where, name in DISK_WRITES:
        original = getattr(where, name)

        def wrapped(*args: object, original=original, **options: object) -> object:  # type: ignore[no-untyped-def]
            fail_at_step()
            return original(*args, **options)

        monkeypatch.setattr(where, name, wrapped)
    with pytest.raises(DiskFull):
        await install_release(home, base_url=web.url)
    monkeypatch.undo()
    assert programs(home) == pair("1.16.1" if step == 10 else "1.15.1")
    check_tidy(home)


async def test_a_cancelled_download_leaves_the_old_pair(home: Home, web: Web, older: Path) -> None:
    await install_from(home, older)
    web.stall(PATH, ARCHIVE)
    started = asyncio.Event()
    task = asyncio.create_task(install_release(home, base_url=web.url, on_progress=lambda _: started.set()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert programs(home) == pair("1.15.1")
    check_tidy(home)


KILLED_AT = {
    "unpack": "install.unpack = Die()",
    "collect": "install.collect = Die()",
    "check": "install.check_elf = Die()",
    "record": "files.write_atomic = Die()",
    "rename": "pathlib.Path.symlink_to = Die()",
    "link": "pathlib.Path.replace = replace",
    "tidy": "installed.remove_leftovers = Die()",
}
PROGRAM = """
import asyncio, os, pathlib, signal, sys
from squib.drivers.firecracker import install, installed, releases
from squib.host import files
from squib.paths import Home

class Die:
    def __call__(self, *args, **options):
        os.kill(os.getpid(), signal.SIGKILL)

def replace(path, target):
    if target.name == "firecracker":
        os.kill(os.getpid(), signal.SIGKILL)
    os.replace(path, target)
    return target

{patch}
asyncio.run(install.install_from(Home(pathlib.Path(sys.argv[1])), pathlib.Path(sys.argv[2])))
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", KILLED_AT)
async def test_kill_9_at_any_moment_leaves_a_whole_pair_and_the_next_one_tidies(
    moment: str, home: Home, older: Path, tmp_path: Path
) -> None:
    await install_from(home, older)
    given = releases.folder(tmp_path / "given")
    if moment == "unpack":
        (tmp_path / "given.tgz").write_bytes(ARCHIVE)
        given = tmp_path / "given.tgz"
    code = PROGRAM.format(patch=KILLED_AT[moment])
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(home.root), str(given))
    assert await child.wait() == -signal.SIGKILL
    assert programs(home) == pair("1.16.1" if moment == "tidy" else "1.15.1")
    installed.sweep(home)
    assert names_in(home.bin) == ["firecracker", find_release(home).root.name]  # type: ignore[union-attr]
    await install_from(home, given)
    assert programs(home) == pair("1.16.1")
    check_tidy(home)


def is_jailer(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].endswith(b"/jailer")
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
async def test_a_program_that_hangs_when_the_installer_is_killed_is_ended_by_the_next_one(
    home: Home, older: Path, tmp_path: Path
) -> None:
    given = releases.folder(tmp_path / "given")
    (given / "jailer").write_bytes(elf.hanging())
    code = PROGRAM.format(patch="")
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(home.root), str(given))
    async with asyncio.timeout(20):
        while not (hanging := [pid for pid in processes.holders(home.tools_lock(installed.LOCK)) if is_jailer(pid)]):
            await asyncio.sleep(0.01)
    child.kill()
    await child.wait()
    await install_from(home, older)
    assert processes.holders(home.tools_lock(installed.LOCK)) == []
    assert not any(map(is_jailer, hanging))
    check_tidy(home)


async def test_the_engine_does_not_touch_an_install_in_progress(home: Home, older: Path) -> None:
    await install_from(home, older)
    unfinished = installed.make_unfinished(home)
    with FileLock(home.build_lock(installed.LOCK)) as lock:
        lock.acquire()
        installed.sweep(home)
        assert unfinished.root.exists()
    installed.sweep(home)
    assert not unfinished.root.exists()
    assert programs(home) == pair("1.15.1")


async def test_a_state_directory_behind_a_link_keeps_its_release(home: Home, older: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(home.root)
    home.root.mkdir()
    linked = Home(tmp_path / "link")
    await install_from(linked, older)
    installed.sweep(linked)
    assert programs(linked) == programs(home) == pair("1.15.1")


async def test_uninstalling_removes_all_of_it_and_nothing_else(home: Home, older: Path) -> None:
    await install_from(home, older)
    (home.bin / "mine").write_text("a user's own")
    installed.make_unfinished(home)
    assert await uninstall(home)
    assert names_in(home.bin) == ["mine"]
    assert not await uninstall(home)
    assert find_release(home) is None


async def test_uninstalling_makes_no_state_directory(home: Home) -> None:
    assert not await uninstall(home)
    assert not home.root.exists()


def test_the_default_version_can_be_downloaded() -> None:
    assert known.DEFAULT_VERSION in known.SHA256
    assert all(version >= MINIMUM_VERSION for version in known.SHA256)
    assert all(known.parse_digest(digest) == digest for digest in known.SHA256.values())
    assert len(set(known.SHA256.values())) == len(known.SHA256)
    assert known.archive_url((1, 16, 1)) == (
        "https://github.com/firecracker-microvm/firecracker/releases/download/v1.16.1/firecracker-v1.16.1-x86_64.tgz"
    )
