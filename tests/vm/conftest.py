"""What tests on real VMs share: a state directory of their own, and the check that each test leaves nothing behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from squib import VM, VMInfo, VMState
from squib.core.engine import cgroup_parent
from squib.host import processes
from squib.host.processes import ProcessIdentity
from squib.paths import Home
from squib.sdk import liveness, local
from squib.sdk.client import EngineClient
from tests.processes import engines, kill_engines, parent, until, watchdogs

LIBC = ctypes.CDLL(None, use_errno=True)
MNT_DETACH = 2
CGROUPS = Path("/sys/fs/cgroup")
SEED = int(os.environ.get("SQUIB_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
"""Of the moments at which something is killed; a test that fails shows it."""
PATIENCE = float(os.environ.get("SQUIB_TEST_PATIENCE", "1"))
"""How many times as long as usual engines and VMs may take. `tests.nested` sets it: its host is emulated."""
SAVED_MEMORY = r"/(?:memfd:squib-memory|memory)"
"""How a VMM's maps name the memory that a clone runs from, as a pattern. QEMU also names fresh memory so."""


@pytest.fixture(scope="session", autouse=True)
def patience() -> Iterator[None]:
    """Multiply time limits of clients in this process by `PATIENCE`."""

    async def start_vm(engine: EngineClient, ref: str, *, boot_timeout_s: float, cold: bool = False) -> VMInfo:
        return await usual(engine, ref, boot_timeout_s=boot_timeout_s * PATIENCE, cold=cold)

    usual = EngineClient.start_vm
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EngineClient, "start_vm", start_vm)
        for module, name in (
            (local, "START_TIMEOUT_S"), (liveness, "SILENCE_S"), (liveness, "PROBE_TIMEOUT_S"),
        ):  # fmt: skip
            patch.setattr(module, name, getattr(module, name) * PATIENCE)
        yield


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A new state directory, with the user's images, kernels and Firecracker where there are any."""
    home, users = Home(tmp_path_factory.mktemp("squib")), Home.from_environment()
    for source, target in (
        (users.images, home.images), (users.kernels, home.kernels), (users.bin, home.bin),
    ):  # fmt: skip
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True, copy_function=link_or_copy)
    os.environ["SQUIB_HOME"] = str(home.root)
    yield home
    end_engine(home)
    assert stray_watchdogs(home) == []
    for vm in home.vms.glob("*"):
        processes.kill(ProcessIdentity(vm / "vmm.lock"))


def link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def engine_pids(home: Home) -> list[int]:
    """The engine of a state directory, if one runs."""
    return processes.holders(home.engine_lock)


def end_engine(home: Home, number: int = signal.SIGTERM) -> None:
    """End the engine and wait until it is gone; its VMs go on.

    SIGKILL takes its watchdog too, so that the next engine is the one that a command starts.
    """
    if number == signal.SIGKILL:
        kill_engines(home)
    for pid in engine_pids(home):
        pidfd = os.pidfd_open(pid)
        signal.pidfd_send_signal(pidfd, number)
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        assert poller.poll(20_000), "the engine does not end"
        os.close(pidfd)


def stray_watchdogs(home: Home) -> list[int]:
    """The watchdogs without an engine: none is their parent, and none is their child.

    One whose engine has just died has a moment to act on that.
    """

    def strays() -> list[int]:
        running = engines(home)
        of_engines = {parent(pid) for pid in running}
        return [pid for pid in watchdogs(home) if parent(pid) not in running and pid not in of_engines]

    with contextlib.suppress(AssertionError):
        until(lambda: not strays(), "they stay", within_s=2)
    return strays()


def unfinished_builds(home: Home) -> list[str]:
    """What is still being built. A template is finished in the background, which may be after its test."""

    def found() -> list[str]:
        return sorted(path.name for path in home.building.glob("*"))

    with contextlib.suppress(AssertionError):
        until(lambda: not found(), "they stay", within_s=10)
    return found()


@dataclass(frozen=True)
class Resources:
    """Everything that VMs of a state directory have on this host."""

    processes: list[int]
    directories: list[str]
    leases: list[tuple[str, str]]
    vms: list[str]
    cgroups: list[str]
    sockets: list[str]
    building: list[str]
    stray_watchdogs: list[int]

    def cgroups_of(self, vms: list[VMInfo]) -> set[str]:
        """The VMs among ``vms`` that have a cgroup."""
        return {vm.vm_id for vm in vms} & {Path(path).name for path in self.cgroups}


def resources(home: Home) -> Resources:
    """Return the resources that exist now."""
    building = unfinished_builds(home)
    folders = sorted(home.vms.iterdir()) if home.vms.is_dir() else []
    leases, vms = [], []
    if home.database.exists():
        database = sqlite3.connect(home.database)
        leases = list(database.execute("SELECT kind, key FROM leases ORDER BY kind, key"))
        vms = [vm_id for (vm_id,) in database.execute("SELECT vm_id FROM vms ORDER BY vm_id")]
        database.close()
    return Resources(
        processes=sorted(pid for folder in folders for pid in processes.holders(folder / "vmm.lock")),
        directories=[folder.name for folder in folders],
        leases=leases,
        vms=vms,
        cgroups=sorted(
            str(path)
            for hierarchy in (CGROUPS, *CGROUPS.iterdir())
            for path in hierarchy.glob(f"{cgroup_parent(home)}/*")
            if path.is_dir()
        ),
        sockets=sorted(str(path) for path in home.vms.glob("*/*.sock")),
        building=building,
        stray_watchdogs=stray_watchdogs(home),
    )


@pytest.fixture(autouse=True)
def nothing_is_left(home: Home) -> Iterator[None]:
    """After each test: the same processes, directories, leases, cgroups and sockets as before."""
    before = resources(home)
    yield
    assert resources(home) == before


@pytest.fixture
def vm(home: Home) -> Iterator[VM]:
    """A VM that runs."""
    with VM() as vm:
        yield vm


@pytest.fixture(scope="module")
def shared_vm(home: Home) -> Iterator[VM]:
    """A VM that runs, for all tests of a module that do not stop it.

    ``SQUIB_TEST_ORIGIN`` says where it comes from: ``boot``, ``clone`` (of a template, the default), ``suspend``,
    ``snapshot`` or ``fork``.
    """
    origin = os.environ.get("SQUIB_TEST_ORIGIN", "clone")
    with contextlib.ExitStack() as made:
        vm = made.enter_context(VM(cold=origin == "boot"))
        vm.run("true")
        if origin == "suspend":
            vm.suspend().start()
        elif origin == "snapshot":
            vm.snapshot(f"of-{vm.name}")
            made.callback(lambda: subprocess.run([sys.executable, "-m", "squib", "snapshot", "rm", f"of-{vm.name}"]))
            vm = made.enter_context(VM(snapshot=f"of-{vm.name}"))
        elif origin == "fork":
            [vm] = vm.fork()
            made.callback(vm.delete)
        else:
            assert origin in ("boot", "clone")
        yield vm


@pytest.fixture
def small_disk(tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Home]]:
    """Makes a state directory on a disk of some MiB of its own, with the images and kernels of the session."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    place = tmp_path / "small"
    place.mkdir()
    made: list[Home] = []

    def make(size_mib: int) -> Home:
        options = f"size={size_mib}m".encode()
        assert LIBC.mount(b"squib-test", os.fsencode(place), b"tmpfs", 0, options) == 0, os.strerror(ctypes.get_errno())
        own = Home(place / "own")
        made.append(own)
        own.root.mkdir()
        own.cache.mkdir()
        for name in ("images", "kernels"):
            (own.cache / name).symlink_to(home.cache / name)
        monkeypatch.setenv("SQUIB_HOME", str(own.root))
        return own

    yield make
    for own in made:
        end_engine(own)
        assert LIBC.umount2(os.fsencode(place), MNT_DETACH) == 0, os.strerror(ctypes.get_errno())


def wait_for_state(vm: VM, *states: VMState, within_s: float) -> float:
    """Wait until the VM is in one of ``states``; return how long that took, in seconds."""
    start = time.monotonic()
    while vm.refresh().state not in states:
        assert time.monotonic() - start < within_s * PATIENCE, f"still {vm.status} after {within_s * PATIENCE} s"
        time.sleep(0.02)
    return time.monotonic() - start
