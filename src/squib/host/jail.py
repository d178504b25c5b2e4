"""Start a VMM confined: in its own cgroup and namespaces, with an empty root, and without privileges.

`plan` says how, without side effects; `start` has a launcher process (`squib.host.jailer`) carry it out. The engine
then waits until the VMM is ready, and calls `Confined.seal` before the guest runs: until then the VMM can read the
system's programs and libraries, which it needs to start, and afterwards nothing.

How much is possible depends on the host (`probe_jail`): root can make namespaces; an ordinary user needs a user
namespace for that; where neither is allowed a VMM has only its user, its cgroup and its own seccomp filter.
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

from squib.errors import HostError
from squib.host import jailer, proc
from squib.host.locks import FileLock
from squib.host.processes import Process
from squib.models import Check, CheckStatus, Fix

SYSTEM_FOLDERS = ("usr", "bin", "sbin", "etc", "opt", "nix", "gnu", "proc")
"""What programs need to start, besides ``lib*``. QEMU opens ``/proc/self/fd/N``."""
SYSTEM_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_BESIDE_BIN = ("lib", "lib64", "libexec", "share")
_LAUNCHER = next(path for path in (getattr(jailer, "__cached__", ""), jailer.__file__) if Path(path).exists())
"""Compiled, if that is there: compiling takes 7 ms."""
_ANSWER_TIMEOUT_S = 20.0
_STAGES = {"pid": "created", "started": "started", "sealed": "sealed"}
_SYSCTLS = (
    ("kernel.unprivileged_userns_clone", "0", "1"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
    ("user.max_user_namespaces", "0", "15000"),
)
"""Settings that forbid user namespaces: name, the value that forbids them, a value that allows them."""


class JailMode(StrEnum):
    """What confines a VMM, besides its user, its cgroup and its own seccomp filter."""

    ROOT = "root"
    USER_NAMESPACE = "user namespace"
    NONE = "none"


@dataclass(frozen=True)
class Jail:
    """How this engine confines VMMs. ``reason`` says why, if the mode is ``none``."""

    mode: JailMode
    reason: str = ""


@dataclass(frozen=True)
class Credentials:
    """Which user a process runs as. ``groups`` are supplementary."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


_PROBE_USER = Credentials(65534, 65534)


@dataclass(frozen=True)
class Bind:
    """A directory or a device of the host that the VMM sees, read-only, until it is sealed."""

    path: str
    directory: bool


@dataclass(frozen=True)
class View:
    """What the VMM sees as its root until it is sealed. ``links`` are symbolic links: path and target."""

    binds: tuple[Bind, ...] = ()
    links: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Plan:
    """Everything that the launcher needs to know. ``cgroups`` are directories."""

    mode: str
    program: str
    argv: tuple[str, ...]
    cgroups: tuple[str, ...] = ()
    credentials: Credentials | None = None
    view: View = View()


class Confined:
    """A VMM that was started and not yet sealed."""

    def __init__(self, process: Process, launcher: Launcher) -> None:
        """See `start`."""
        self.process = process
        self._launcher = launcher

    async def seal(self) -> None:
        """Take the VMM's file system away; its root is an empty read-only directory from now on.

        To be called when the VMM has opened everything that it needs, such as its libraries.
        Raises `HostError` if that fails, or the VMM or the launcher has ended. The VMM must not run a guest then.
        """
        await self._launcher.seal()

    async def kill(self) -> None:
        """Kill the VMM and its launcher, and wait until both have ended. Idempotent."""
        await self._launcher.close()
        await self.process.kill()


class Launcher:
    """The engine's end of the conversation with a `squib.host.jailer`."""

    def __init__(self, process: Process, connection: socket.socket) -> None:
        """Take over both."""
        self._process = process
        self._connection = connection

    async def answer(self, wanted: str) -> str:
        """Wait for the report ``wanted`` and return what follows that word. Raises `HostError` if another one comes."""
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                message = await asyncio.get_running_loop().sock_recv(self._connection, 1 << 16)
        except TimeoutError:
            raise HostError(f"the launcher of a VMM did not answer within {_ANSWER_TIMEOUT_S:g} s") from None
        except ConnectionResetError:
            message = b""
        name, _, text = message.decode().partition(" ")
        if name == wanted:
            return text
        if name == "error":
            raise HostError(f"the VMM could not be started: {text}", hint="squib doctor")
        raise HostError(f"the VMM or its launcher has ended before it was {_STAGES[wanted]}")

    def send(self, data: bytes) -> None:
        """Send a message. A launcher that has ended is noticed by `answer`."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.send(data)

    async def seal(self) -> None:
        """Ask for the seal and wait until no process with privileges is left in the VMM's namespaces."""
        self.send(b"s")
        await self.answer("sealed")
        await self._process.wait()
        self._connection.close()

    async def close(self) -> None:
        """End the launcher. Idempotent."""
        await self._process.kill()
        self._connection.close()


async def start(plan: Plan, *, lock: FileLock, pass_fds: Sequence[int] = (), log_path: Path) -> Confined:
    """Start a VMM as planned; return when its program runs.

    It inherits ``lock``, which the caller holds, and ``pass_fds``; its output goes to ``log_path``. After an error and
    after a cancellation no process of the launch is left that this engine knows of; what was forked in the very moment
    of a cancellation is found by its identity (`squib.host.processes.kill`). Raises `HostError`.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    async with contextlib.AsyncExitStack() as undo:
        undo.callback(ours.close)
        with theirs:
            argv = [sys.executable, "-I", "-S", _LAUNCHER, str(theirs.fileno())]
            process = proc.spawn(argv, lock=lock, pass_fds=(*pass_fds, theirs.fileno()), log_path=log_path)
        launcher = Launcher(process, ours)
        undo.push_async_callback(launcher.close)
        launcher.send(marshal.dumps(asdict(plan)))
        pid = int(await launcher.answer("pid"))
        vmm = Process(pid, os.pidfd_open(pid))  # a child of this process that nobody else reaps: the pid is right
        undo.push_async_callback(vmm.kill)
        await launcher.answer("started")
        undo.pop_all()
        return Confined(vmm, launcher)


def plan(
    jail: Jail,
    argv: Sequence[str],
    *,
    cgroups: Sequence[Path] = (),
    credentials: Credentials | None = None,
    devices: Sequence[str] = (),
) -> Plan:
    """Plan the start of ``argv``, whose first word names a program as `squib.host.proc.find_tool` takes it.

    The VMM joins ``cgroups`` (directories) and runs as the user of ``credentials``, else as this one. It sees
    ``devices`` besides `SYSTEM_DEVICES` until it is sealed. Raises `DependencyMissing`.
    """
    program = proc.find_tool(argv[0]).resolve()
    seen = View() if jail.mode is JailMode.NONE else view(program, devices)
    return Plan(jail.mode.value, str(program), tuple(argv), tuple(map(str, cgroups)), credentials, seen)


def view(program: Path, devices: Sequence[str] = (), *, root: Path = Path("/")) -> View:
    """What of the host's file system below ``root`` a ``program`` needs to start."""
    tops = [*(root / name for name in SYSTEM_FOLDERS), *sorted(root.glob("lib*"))]
    links = tuple((_inside(root, path), str(path.readlink())) for path in tops if path.is_symlink())
    folders = [_inside(root, path) for path in tops if path.is_dir() and not path.is_symlink()]
    own = [path for path in _own_folders(program, root) if not any(Path(path).is_relative_to(top) for top in folders)]
    nodes = [path for path in (*SYSTEM_DEVICES, *devices) if (root / path[1:]).exists()]
    binds = (*(Bind(path, True) for path in (*folders, *own)), *(Bind(path, False) for path in nodes))
    return View(binds, links)


def _own_folders(program: Path, root: Path) -> list[str]:
    """The directory of a program that is not the system's, and those beside a ``bin``, where its files are."""
    above = program.parent
    folders = [above, *(above.with_name(name) for name in _BESIDE_BIN if above.name == "bin")]
    return [str(path) for path in folders if (root / str(path)[1:]).is_dir()]


def _inside(root: Path, path: Path) -> str:
    return f"/{path.relative_to(root)}"


async def probe_jail() -> Jail:
    """Find out how VMMs can be confined on this host, by confining a program. Takes about 30 ms."""
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
    """What `squib doctor` says about the confinement of VMMs."""
    if jail.mode is JailMode.NONE:
        detail = (
            "VMMs see the host's files, processes and network: only their user, their cgroup and QEMU's seccomp "
            f"filter confine them. {jail.reason}"
        )
        return Check(name="jail", status=CheckStatus.WARN, detail=detail, fix=sysctl_fix())
    detail = f"each VMM has namespaces of its own and an empty root ({jail.mode})"
    return Check(name="jail", status=CheckStatus.OK, detail=detail)


def sysctl_fix(settings: Path = Path("/proc/sys")) -> Fix | None:
    """The command that allows user namespaces, if a setting forbids them."""
    for name, forbids, allows in _SYSCTLS:
        with contextlib.suppress(FileNotFoundError, PermissionError):
            if (settings / name.replace(".", "/")).read_text().strip() == forbids:
                return Fix(argv=("sysctl", "-w", f"{name}={allows}"), as_root=True)
    return None
