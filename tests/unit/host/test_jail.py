"""Confining a VMM: the plan, the launcher, and the death of each process at every moment."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from squib.errors import DependencyMissing, HostError
from squib.host import cgroup, jail, processes
from squib.host.jail import Bind, Confined, Credentials, Jail, JailMode
from squib.host.locks import FileLock
from squib.host.processes import ProcessIdentity
from squib.models import CheckStatus, Fix

pytestmark = pytest.mark.anyio

NO_JAIL = Jail(JailMode.NONE, "no namespaces here")
SLEEPER = ["sleep", "60"]
APPARMOR = "apparmor_restrict_unprivileged_userns"
MOMENTS_S = [0.001 * number for number in range(0, 30, 2)]
"""When to kill something during a launch, which takes about 20 ms."""


@pytest.fixture(scope="module")
def best() -> Jail:
    """The jail that this host allows this user."""
    return asyncio.run(jail.probe_jail())


@pytest.fixture(params=["best", "none"])
def any_jail(request: pytest.FixtureRequest, best: Jail) -> Jail:
    return best if request.param == "best" else NO_JAIL


@pytest.fixture
def identity(tmp_path: Path) -> Iterator[ProcessIdentity]:
    """Of the VMM of a test. Nothing that matches it may be left after the test."""
    identity = ProcessIdentity(tmp_path / "vmm.lock")
    yield identity
    left = processes.find(identity)
    processes.kill(identity)
    assert left == []


async def start(identity: ProcessIdentity, plan: jail.Plan, *pass_fds: int) -> Confined:
    with FileLock(identity.lock_path) as lock:
        assert lock.try_acquire()
        return await jail.start(plan, lock=lock, pass_fds=pass_fds, log_path=identity.lock_path.with_name("vmm.log"))


async def until_loaded(pid: int) -> None:
    """Wait until a program has its libraries: the seal takes away what it has not read yet."""
    await until(lambda: "libc" in Path(f"/proc/{pid}/maps").read_text() and "(sleeping)" in status_of(pid))


def status_of(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text()


async def output(identity: ProcessIdentity, plan: jail.Plan, *pass_fds: int) -> str:
    """What a program prints that ends by itself."""
    confined = await start(identity, plan, *pass_fds)
    await confined.process.wait()
    await confined.kill()
    return identity.lock_path.with_name("vmm.log").read_text()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


def make_root(folder: Path) -> Path:
    """A host's file system, as far as plans look at it."""
    for path in ("usr/bin", "usr/lib", "etc", "proc", "dev", "home/me/qemu/bin", "home/me/qemu/share", "libexec"):
        (folder / path).mkdir(parents=True)
    for name in ("null", "zero", "kvm"):
        (folder / "dev" / name).touch()
    for name in ("bin", "lib"):
        (folder / name).symlink_to(f"usr/{name}")
    return folder


def test_a_vmm_sees_the_systems_programs_and_libraries_to_start(tmp_path: Path) -> None:
    view = jail.view(Path("/usr/bin/qemu"), root=make_root(tmp_path))
    assert view.links == (("/bin", "usr/bin"), ("/lib", "usr/lib"))
    assert view.binds == (
        Bind("/usr", True),
        Bind("/etc", True),
        Bind("/proc", True),
        Bind("/libexec", True),
        Bind("/dev/null", False),
        Bind("/dev/zero", False),
    )


def test_a_vmm_sees_the_directory_of_its_program_and_the_devices_that_it_needs(tmp_path: Path) -> None:
    view = jail.view(Path("/home/me/qemu/bin/qemu"), ["/dev/kvm"], root=make_root(tmp_path))
    paths = [bind.path for bind in view.binds]
    assert [path for path in paths if path.startswith("/home")] == ["/home/me/qemu/bin", "/home/me/qemu/share"]
    assert Bind("/dev/kvm", False) in view.binds


def test_a_plan_without_a_jail_shows_everything() -> None:
    plan = jail.plan(NO_JAIL, ["sleep", "1"], cgroups=[Path("/c/vm")], credentials=Credentials(1, 2, (3,)))
    assert (plan.mode, plan.view) == ("none", jail.View())
    assert Path(plan.program).name in ("sleep", "busybox", "coreutils")
    assert (plan.argv, plan.cgroups, plan.credentials) == (("sleep", "1"), ("/c/vm",), Credentials(1, 2, (3,)))


def test_a_program_that_is_not_installed() -> None:
    with pytest.raises(DependencyMissing, match="no-such-program"):
        jail.plan(NO_JAIL, ["no-such-program"])


def test_doctor_says_how_vmms_are_confined() -> None:
    assert jail.check(Jail(JailMode.ROOT)).status is CheckStatus.OK
    warning = jail.check(NO_JAIL)
    assert warning.status is CheckStatus.WARN
    assert NO_JAIL.reason in warning.detail


@pytest.mark.parametrize(
    ("setting", "value", "assignment"),
    [
        ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        ("user/max_user_namespaces", "0", "user.max_user_namespaces=15000"),
        ("user/max_user_namespaces", "96365", None),
    ],
)
def test_the_setting_that_forbids_user_namespaces_is_named(
    tmp_path: Path, setting: str, value: str, assignment: str | None
) -> None:
    (tmp_path / setting).parent.mkdir()
    (tmp_path / setting).write_text(f"{value}\n")
    fix = Fix(argv=("sysctl", "-w", assignment), as_root=True) if assignment else None
    assert jail.sysctl_fix(tmp_path) == fix


async def test_a_host_that_refuses_namespaces_gives_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(plan: jail.Plan, **_: object) -> Confined:
        raise HostError("cannot create a user namespace: Operation not permitted")

    monkeypatch.setattr(jail, "start", refuse)
    found = await jail.probe_jail()
    assert found.mode is JailMode.NONE
    assert "Operation not permitted" in found.reason


async def test_a_vmm_from_start_to_end(any_jail: Jail, identity: ProcessIdentity) -> None:
    confined = await start(identity, jail.plan(any_jail, SLEEPER))
    assert len(processes.find(identity)) == 2  # the launcher too
    await until_loaded(confined.process.pid)
    await confined.seal()
    assert processes.find(identity) == [confined.process.pid]
    await confined.kill()
    await confined.kill()
    assert confined.process.returncode == -signal.SIGKILL


async def test_an_exit_status_is_known(any_jail: Jail, identity: ProcessIdentity) -> None:
    confined = await start(identity, jail.plan(any_jail, ["sh", "-c", "exit 3"]))
    await confined.process.wait()
    await confined.kill()
    assert confined.process.returncode == 3


async def test_a_vmm_inherits_nothing_but_what_it_is_given(
    any_jail: Jail, identity: ProcessIdentity, tmp_path: Path
) -> None:
    given, kept = os.pipe()
    with (tmp_path / "secret").open("w") as secret:
        os.set_inheritable(secret.fileno(), True)
        script = "ls -l /proc/self/fd; env; ulimit -c; umask; trap"
        said = await output(identity, jail.plan(any_jail, ["sh", "-c", script]), given)
    os.close(given)
    os.close(kept)
    assert said.count("pipe:") == 1
    assert "socket:" not in said
    assert "secret" not in said
    assert "HOME=" not in said
    assert "\n0\n0077\n" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
async def test_a_vmm_runs_as_the_user_of_its_credentials(any_jail: Jail, identity: ProcessIdentity) -> None:
    plan = jail.plan(any_jail, ["sh", "-c", "id -u; id -G"], credentials=Credentials(70001, 70002, (70003,)))
    assert await output(identity, plan) == "70001\n70002 70003\n"


async def test_a_vmm_is_in_its_cgroup_from_its_first_moment(any_jail: Jail, tmp_path: Path) -> None:
    layout, name = cgroup.find_layout(), f"squib-test/jail-{os.getpid()}"
    if not layout.hierarchies:
        pytest.skip("this user may not make control groups")
    cgroup.create(layout, name, cgroup.Limits(memory_mib=256, cpus=1, pids=64))
    identity = ProcessIdentity(tmp_path / "vmm.lock", cgroup.directories(layout, name))
    plan = jail.plan(any_jail, ["cat", "/proc/self/cgroup"], cgroups=identity.cgroups)
    said = await output(identity, plan)
    cgroup.remove(layout, name)
    assert said.count(name) == len(identity.cgroups)


async def test_a_program_that_cannot_be_executed(any_jail: Jail, identity: ProcessIdentity, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF nonsense")
    broken.chmod(0o755)
    with pytest.raises(HostError, match=r"cannot execute .*broken: Exec format error"):
        await start(identity, jail.plan(any_jail, [str(broken)]))


async def test_a_step_that_fails_is_named(any_jail: Jail, identity: ProcessIdentity) -> None:
    with pytest.raises(HostError, match="cannot join the cgroup /nowhere/vm: No such file"):
        await start(identity, jail.plan(any_jail, SLEEPER, cgroups=[Path("/nowhere/vm")]))


async def test_a_launcher_that_does_not_answer(identity: ProcessIdentity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jail, "_REPORT_TIMEOUT_S", 0.0)
    with pytest.raises(HostError, match="did not respond"):
        await start(identity, jail.plan(NO_JAIL, SLEEPER))


async def test_a_vmm_that_ends_before_the_seal_is_not_sealed(any_jail: Jail, identity: ProcessIdentity) -> None:
    confined = await start(identity, jail.plan(any_jail, SLEEPER))
    os.kill(confined.process.pid, signal.SIGKILL)
    await confined.process.wait()
    with pytest.raises(HostError, match="ended before the VMM was sealed"):
        await confined.seal()
    await confined.kill()


async def test_a_launcher_that_is_killed_before_the_seal_is_noticed(any_jail: Jail, identity: ProcessIdentity) -> None:
    confined = await start(identity, jail.plan(any_jail, SLEEPER))
    (launcher,) = set(processes.find(identity)) - {confined.process.pid}
    os.kill(launcher, signal.SIGKILL)
    with pytest.raises(HostError, match="ended before the VMM was sealed"):
        await confined.seal()
    await confined.kill()


@pytest.mark.parametrize("moment_s", MOMENTS_S)
async def test_kill_9_of_the_launcher_at_any_moment_leaves_nothing(
    best: Jail, identity: ProcessIdentity, moment_s: float
) -> None:
    async def launch() -> None:
        confined = await start(identity, jail.plan(best, SLEEPER))
        try:
            await confined.seal()
        finally:
            await confined.kill()

    launching = asyncio.create_task(launch())
    await until(lambda: processes.find(identity) != [])
    await asyncio.sleep(moment_s)
    for pid in processes.find(identity)[:1]:
        os.kill(pid, signal.SIGKILL)
    await asyncio.wait([launching])
    assert isinstance(launching.exception(), HostError | None)
    await asyncio.to_thread(processes.kill, identity)  # as the driver does after a launch that failed


@pytest.mark.parametrize("moment_s", MOMENTS_S)
async def test_a_launch_that_is_cancelled_at_any_moment_leaves_nothing(
    best: Jail, identity: ProcessIdentity, moment_s: float
) -> None:
    launching = asyncio.create_task(start(identity, jail.plan(best, SLEEPER)))
    await asyncio.sleep(moment_s)
    launching.cancel()
    await asyncio.wait([launching])
    if not launching.cancelled():
        await launching.result().kill()
    await asyncio.to_thread(processes.kill, identity)


ENGINES = """
import asyncio, os, signal, sys
from pathlib import Path
from squib.host import jail
from squib.host.locks import FileLock
async def main(path, mode, output):
    with FileLock(path) as lock:
        assert lock.try_acquire()
        plan = jail.plan(jail.Jail(jail.JailMode(mode)), ["sleep", "60"])
        print(os.getpid(), file=output, flush=True)
        confined = await jail.start(plan, lock=lock, log_path=path.with_name("vmm.log"))
    print("started", file=output, flush=True)
    await asyncio.Event().wait()
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    path, mode, output = line.split()
    if os.fork() == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        asyncio.run(main(Path(path), mode, open(output, "w")))
"""
"""A process that forks an engine for each line that it reads, since what an engine imports takes long."""

StartEngine = Callable[[ProcessIdentity, Jail, Path], None]


@pytest.fixture(scope="module")
def start_engine() -> Iterator[StartEngine]:
    """Starts an engine that launches a process in a jail, and writes its pid and then ``started`` to a named pipe."""
    argv = [sys.executable, "-c", ENGINES]
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as engines:
        assert engines.stdin

        def start(identity: ProcessIdentity, jail: Jail, output: Path) -> None:
            assert engines.stdin
            engines.stdin.write(f"{identity.lock_path} {jail.mode.value} {output}\n".encode())
            engines.stdin.flush()

        yield start
        engines.stdin.close()


@pytest.mark.parametrize("moment_s", [*MOMENTS_S, None])
def test_kill_9_of_the_engine_before_the_seal_ends_the_vmm(
    best: Jail, identity: ProcessIdentity, start_engine: StartEngine, tmp_path: Path, moment_s: float | None
) -> None:
    """At any moment of the launch, or (``None``) after it: no guest has run, and none may run unsealed."""
    os.mkfifo(tmp_path / "output")
    start_engine(identity, best, tmp_path / "output")
    with (tmp_path / "output").open() as output:
        pid = int(output.readline())
        try:
            if moment_s is None:
                assert output.readline() == "started\n"
                assert len(processes.find(identity)) == 2
            else:
                time.sleep(moment_s)
        finally:
            os.kill(pid, signal.SIGKILL)
        output.read()  # to its end: the engine has ended, and has started what it ever starts
    # Twice: a process that starts while /proc is read may not be found.
    asyncio.run(until(lambda: processes.find(identity) == processes.find(identity) == []))
