"""Start a VMM in a jail: own cgroup and namespaces, no files, no privileges.

`plan` computes the steps, without side effects. `start` lets a launcher process (`squib.host.jailer`) carry them out.
The engine then waits until the VMM is ready, and calls `Confined.seal` before the guest runs. Before the seal the VMM
can read the system's programs and libraries, which it needs to start. After the seal it sees only an empty root
directory.

The host decides how much of this is possible (`probe_jail`). Root can create namespaces; an ordinary user needs a user
namespace for that. If neither is allowed, only the VMM's user, cgroup and seccomp filter confine it.
"""

from __future__ import annotations

import asyncio
import contextlib
import marshal
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from squib.errors import HostError
from squib.host import jailer, proc
from squib.host.locks import FileLock
from squib.host.processes import Process
from squib.host.seccomp import without_outside
from squib.models import Check, CheckStatus, Fix
from squib.undo import Undo

SYSTEM_FOLDERS = ("usr", "bin", "sbin", "etc", "opt", "nix", "gnu", "proc")
"""The directories that programs need to start, besides ``lib*``. QEMU opens ``/proc/self/fd/N``."""
SYSTEM_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_BESIDE_BIN = ("lib", "lib64", "libexec", "share")
_LAUNCHER = next(path for path in (getattr(jailer, "__cached__", ""), jailer.__file__) if Path(path).exists())
"""The compiled file if it exists, because compiling takes 7 ms."""
_REPORT_TIMEOUT_S = 20.0
_STAGES = {"pid": "created", "started": "started", "sealed": "sealed"}
_SYSCTLS = (
    ("kernel.unprivileged_userns_clone", "0", "1"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
    ("user.max_user_namespaces", "0", "15000"),
)
"""Settings that can forbid user namespaces: the name, the value that forbids them, and a value that allows them."""


class JailMode(StrEnum):
    """What confines a VMM besides its user, cgroup and seccomp filter."""

    ROOT = "root"
    USER_NAMESPACE = "user namespace"
    NONE = "none"


@dataclass(frozen=True)
class Jail:
    """How this engine confines VMMs.

    ``reason`` is set if the mode is ``none``, and says why.
    """

    mode: JailMode
    reason: str = ""


@dataclass(frozen=True)
class Credentials:
    """The user and groups that a process runs as.

    ``groups`` are its supplementary groups.
    """

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


_PROBE_USER = Credentials(65534, 65534)


@dataclass(frozen=True)
class Bind:
    """A host directory or device that the VMM can read until the seal."""

    path: str
    directory: bool


@dataclass(frozen=True)
class View:
    """The VMM's root directory until the seal.

    ``links`` are symbolic links: path and target.
    """

    binds: tuple[Bind, ...] = ()
    links: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Plan:
    """All that the launcher needs to know. ``cgroups`` are directories."""

    mode: str
    program: str
    argv: tuple[str, ...]
    cgroups: tuple[str, ...] = ()
    credentials: Credentials | None = None
    view: View = View()
    filter: bytes = b""
    """A seccomp filter (`squib.host.seccomp`)."""
    cwd: str = "/"


class Confined:
    """A VMM that was started in a jail, with its launcher until the seal."""

    def __init__(self, process: Process, launcher: Launcher) -> None:
        """See `start`."""
        self.process = process
        self._launcher = launcher

    async def seal(self) -> None:
        """Remove all files from the VMM's view: empty its root directory.

        Call this when the VMM has opened everything that it needs, such as its libraries. The root directory is then
        read-only.

        Raises `HostError` if the seal fails, or if the VMM or the launcher has ended. The VMM must then not run a
        guest.
        """
        await self._launcher.seal()

    async def kill(self) -> None:
        """Kill the VMM and its launcher, and wait until both have ended.

        Idempotent.
        """
        await self._launcher.close()
        await self.process.kill()


class Launcher:
    """The engine's connection to a launcher process (`squib.host.jailer`)."""

    def __init__(self, process: Process, connection: socket.socket) -> None:
        """Take over ``process`` and ``connection``."""
        self.process = process
        self._connection = connection

    async def wait_for_report(self, wanted: str) -> str:
        """Wait for the report ``wanted`` and return its text.

        Raises `HostError` for any other report.
        """
        name, text = await self._report()
        if name == wanted:
            return text
        raise HostError(f"the VMM or its launcher ended before the VMM was {_STAGES[wanted]}")

    async def wait_until_replaced(self) -> None:
        """Wait until the launcher executes another program in its own place.

        Also returns if the launcher is killed. Raises `HostError` if it fails.
        """
        await self._report()
        self._connection.close()

    async def _report(self) -> tuple[str, str]:
        """Return the next report; empty if the launcher closes the connection."""
        try:
            async with asyncio.timeout(_REPORT_TIMEOUT_S):
                message = await asyncio.get_running_loop().sock_recv(self._connection, 1 << 16)
        except TimeoutError:
            raise HostError(f"the launcher of a VMM did not respond within {_REPORT_TIMEOUT_S:g} s") from None
        except ConnectionResetError:
            message = b""
        name, _, text = message.decode().partition(" ")
        if name == "error":
            raise HostError(f"the VMM cannot be started: {text}", hint="squib doctor")
        return name, text

    def send(self, data: bytes) -> None:
        """Send a message.

        If the launcher has ended, the next `wait_for_report` raises.
        """
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.send(data)

    async def seal(self) -> None:
        """Ask for the seal.

        Return when the launcher, the last privileged process in the jail, has exited.
        """
        self.send(b"s")
        await self.wait_for_report("sealed")
        await self.process.wait()
        self._connection.close()

    async def close(self) -> None:
        """Kill the launcher and close the connection. Idempotent."""
        await self.process.kill()
        self._connection.close()


async def start(
    plan: Plan, *, lock: FileLock, pass_fds: Sequence[int] = (), log_path: Path, stdout_path: Path | None = None
) -> Confined:
    """Start a VMM as planned; return when its program runs.

    It inherits ``lock``, which the caller holds, and ``pass_fds``. Its output goes to ``log_path`` and ``stdout_path``
    (`squib.host.proc.spawn`). On an error or a
    cancellation, every process whose pid the launcher has reported is killed. A VMM that was forked at that very moment
    can survive this: end it by its identity (`squib.host.processes.kill`).

    Raises `HostError`.
    """
    async with contextlib.AsyncExitStack() as undo:
        launcher = await start_launcher(
            asdict(plan), lock=lock, pass_fds=pass_fds, log_path=log_path, stdout_path=stdout_path
        )
        undo.push_async_callback(launcher.close)
        pid = int(await launcher.wait_for_report("pid"))
        vmm = Process(pid, os.pidfd_open(pid))  # only this process reaps it: the pid cannot be reused
        undo.push_async_callback(vmm.kill)
        await launcher.wait_for_report("started")
        undo.pop_all()
        return Confined(vmm, launcher)


async def start_launcher(
    plan: dict[str, Any],
    *,
    lock: FileLock,
    pass_fds: Sequence[int] = (),
    log_path: Path,
    stdout_path: Path | None = None,
) -> Launcher:
    """Start a launcher with a plan. It inherits ``lock``, which the caller holds, and ``pass_fds``.

    Raises `HostError`.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with Undo(ours.close), theirs:
        argv = [sys.executable, "-I", "-S", _LAUNCHER, str(theirs.fileno())]
        fds = (*pass_fds, theirs.fileno())
        process = proc.spawn(argv, lock=lock, pass_fds=fds, log_path=log_path, stdout_path=stdout_path)
    launcher = Launcher(process, ours)
    launcher.send(marshal.dumps(plan))
    return launcher


def plan(
    jail: Jail,
    argv: Sequence[str],
    *,
    cgroups: Sequence[Path] = (),
    credentials: Credentials | None = None,
    devices: Sequence[str] = (),
) -> Plan:
    """Plan the start of ``argv``, whose program is found by `find_tool`.

    The VMM joins ``cgroups`` (directories) and runs as the user of ``credentials``, by default as this user. Until the
    seal it sees ``devices`` in addition to `SYSTEM_DEVICES`.

    Raises `DependencyMissing`.
    """
    program = proc.find_tool(argv[0]).resolve()
    seen = View() if jail.mode is JailMode.NONE else view(program, devices)
    return Plan(
        jail.mode.value, str(program), tuple(argv), tuple(map(str, cgroups)), credentials, seen, without_outside()
    )


def view(program: Path, devices: Sequence[str] = (), *, root: Path = Path("/")) -> View:
    """Return the files below ``root`` that ``program`` needs to start."""
    tops = [*(root / name for name in SYSTEM_FOLDERS), *sorted(root.glob("lib*"))]
    links = tuple((_inside(root, path), str(path.readlink())) for path in tops if path.is_symlink())
    folders = [_inside(root, path) for path in tops if path.is_dir() and not path.is_symlink()]
    own = [path for path in _own_folders(program, root) if not any(Path(path).is_relative_to(top) for top in folders)]
    nodes = [path for path in (*SYSTEM_DEVICES, *devices) if (root / path[1:]).exists()]
    binds = (*(Bind(path, True) for path in (*folders, *own)), *(Bind(path, False) for path in nodes))
    return View(binds, links)


def _own_folders(program: Path, root: Path) -> list[str]:
    """Return the directories that hold the program and its files.

    If the program is in a ``bin``, these include directories next to it.
    """
    above = program.parent
    folders = [above, *(above.with_name(name) for name in _BESIDE_BIN if above.name == "bin")]
    return [str(path) for path in folders if (root / str(path)[1:]).is_dir()]


def _inside(root: Path, path: Path) -> str:
    return f"/{path.relative_to(root)}"


async def probe_jail() -> Jail:
    """Find out how this host can confine VMMs, by starting a jail.

    Takes about 30 ms.
    """
    mode = JailMode.ROOT if os.geteuid() == 0 else JailMode.USER_NAMESPACE
    try:
        await _try(Jail(mode))
    except HostError as error:
        return Jail(JailMode.NONE, error.message)
    return Jail(mode)


async def _try(jail: Jail) -> None:
    credentials = _PROBE_USER if jail.mode is JailMode.ROOT else None
    wanted = plan(jail, ["sleep", "60"], credentials=credentials)
    with tempfile.TemporaryDirectory(prefix="squib-jail-") as folder, FileLock(Path(folder) / "lock") as lock:
        confined = await start(wanted, lock=lock, log_path=Path(folder) / "log")
        try:
            await confined.seal()
        finally:
            await confined.kill()


def check(jail: Jail) -> Check:
    """Return the check of the jail for `squib doctor`."""
    if jail.mode is JailMode.NONE:
        detail = (
            "VMMs see the host's files, processes and network: only their user, their cgroup and QEMU's seccomp "
            f"filter confine them. {jail.reason}"
        )
        return Check(name="jail", status=CheckStatus.WARN, detail=detail, fix=sysctl_fix())
    detail = f"each VMM has namespaces of its own and an empty root ({jail.mode})"
    return Check(name="jail", status=CheckStatus.OK, detail=detail)


def sysctl_fix(settings: Path = Path("/proc/sys")) -> Fix | None:
    """Return the command that allows user namespaces.

    Returns ``None`` if no sysctl forbids them. ``settings`` is the directory of the sysctls.
    """
    for name, forbids, allows in _SYSCTLS:
        with contextlib.suppress(FileNotFoundError, PermissionError):
            if (settings / name.replace(".", "/")).read_text().strip() == forbids:
                return Fix(argv=("sysctl", "-w", f"{name}={allows}"), as_root=True)
    return None
