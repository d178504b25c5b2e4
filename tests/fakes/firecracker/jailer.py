"""The stub jailer as a program: it checks what the real one checks, and prepares a chroot like the real one's.

As root, the stub VMM is in a real chroot, as the user and group asked for. It enters it itself, after it has loaded all
of Python that it needs. As another user, the stub VMM only behaves as if the chroot were ``/``. There are no cgroups,
no PID namespace and no network namespace: `--cgroup`, `--netns` and the rest are only checked.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, NoReturn

from tests.fakes.firecracker.arguments import Argument, ArgumentError, Parsed, invalid_id, parse, parse_version
from tests.fakes.firecracker.process import READY, ROOT, reason
from tests.fakes.firecracker.settings import Settings, die

ARGUMENTS = {
    "id": Argument(value=True, required=True),
    "exec-file": Argument(value=True, required=True),
    "uid": Argument(value=True, required=True),
    "gid": Argument(value=True, required=True),
    "chroot-base-dir": Argument(value=True, default="/srv/jailer"),
    "netns": Argument(value=True),
    "daemonize": Argument(),
    "new-pid-ns": Argument(),
    "cgroup": Argument(value=True, multiple=True),
    "resource-limit": Argument(value=True, multiple=True),
    "cgroup-version": Argument(value=True, default="1"),
    "parent-cgroup": Argument(value=True),
    "version": Argument(),
}
STEPS = ("arguments", "folder", "copy", "netns", "limits", "folders", "devices", "fork", "pid-file", "exec")
"""What faults can be told for, as ``jailer STEP``, in this order. A refusal ends the jailer with status 1."""
_FOLDERS = ("", "dev", "dev/net", "run")
_DEVICES = (("dev/net/tun", 10, 200), ("dev/kvm", 10, 232), ("dev/urandom", 1, 9))
_LIMITS = {"fsize": resource.RLIMIT_FSIZE, "no-file": resource.RLIMIT_NOFILE}
_MAX_FILES = 2048


class Failed(Exception):
    """The end of the jailer; the text is the real one's."""


class Jail(NamedTuple):
    """What the command line asks for."""

    instance_id: str
    program: Path
    root: Path
    uid: int
    gid: int
    netns: str | None
    daemonize: bool
    new_pid_ns: bool
    limits: dict[str, int]
    extra: list[str]

    @property
    def copy(self) -> Path:
        """The VMM in the chroot."""
        return self.root / self.program.name


def main(settings_path: str) -> NoReturn:
    """Run the stub jailer; never return."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()
    settings = Settings(settings_path)
    signal.alarm(settings.values["lifetime_s"])
    try:
        _run(settings)
    except Failed as error:
        print(f"{error}\nError: Stub({str(error)!r})", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def _run(settings: Settings) -> None:
    version = settings.values["version"]
    try:
        parsed = parse(sys.argv[1:], ARGUMENTS, parse_version(version))
    except ArgumentError as error:
        raise Failed(f"Failed to parse arguments: {error}") from None
    if "version" in parsed.values:
        print(f"Jailer v{version}\n", flush=True)
        return
    if "help" in parsed.values:
        raise Failed("the stub has no --help")
    steps = _Steps(settings)
    with steps("arguments"):
        jail = _check(parsed, parse_version(version))
    with steps("folder"), _failing("Failed to create directory {path}: {reason}", jail.root):
        jail.root.mkdir(parents=True, exist_ok=True)
    with steps("copy"), _failing("Failed to open {path}: {reason}", jail.copy):
        _copy(jail)
    with steps("netns"):
        if jail.netns is not None:
            with _failing("Failed to open file {path}: {reason}", jail.netns):
                os.close(os.open(jail.netns, os.O_RDONLY))
    with steps("limits"):
        for name, value in jail.limits.items():
            resource.setrlimit(_LIMITS[name], (value, value))
    with steps("folders"):
        for name in _FOLDERS:
            _make_folder(jail, jail.root / name)
    with steps("devices"):
        for name, major, minor in _DEVICES:
            with _failing(f"Failed to create /{name} via mknod inside the jail: {{reason}}", name):
                _make_device(jail, jail.root / name, os.makedev(major, minor))
    if jail.daemonize:
        _daemonize()
    _start(jail, steps)


class _Steps:
    """Makes each step fail that the settings want to fail."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._obey("before", name)
        yield
        self._obey("after", name)

    def _obey(self, when: str, name: str) -> None:
        fault = self._settings.fault(when, f"jailer {name}")
        if fault is None:
            return
        while fault.do == "hang":
            signal.pause()
        if fault.do == "die":
            die(fault)
        raise Failed(fault.message or f"refused {when} {name}")


@contextmanager
def _failing(message: str, path: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Failed(message.format(path=path, reason=reason(error))) from None


def _check(parsed: Parsed, version: tuple[int, int]) -> Jail:
    """Check the arguments in the real jailer's order."""
    instance_id, given = parsed.single("id") or "", parsed.single("exec-file") or ""
    if wrong := invalid_id(instance_id):
        raise Failed(f"Invalid instance ID: {wrong}")
    program = _canonical(given)
    if not program.is_file():
        raise Failed(f"{program} is not a file")
    name = program.name
    if version < (1, 11) and "firecracker" not in name:
        raise Failed(f'Invalid filename. The filename of `--exec-file` option must contain "firecracker": {name}')
    base = _canonical(parsed.single("chroot-base-dir") or "")
    if not base.is_dir():
        raise Failed(f"{base} is not a directory")
    uid, gid = (_number(parsed.single(kind) or "", 32, f"Invalid {kind}: {{}}") for kind in ("uid", "gid"))
    parent = parsed.single("parent-cgroup")
    if _leads_out(name if parent is None else parent):
        raise Failed("Parent cgroup path is invalid. Path should not be absolute or contain '..' or '.'")
    cgroup_version = parsed.single("cgroup-version") or ""
    _number(cgroup_version, 8, "{} is an invalid cgroup version specifier")
    if parsed.several("cgroup") and cgroup_version not in ("1", "2"):
        raise Failed(f"{cgroup_version} is an invalid cgroup version specifier")
    for text in parsed.several("cgroup"):
        file, *values = text.split("=")
        if len(values) != 1 or not values[0]:
            raise Failed(f"Invalid format for cgroups: {text}")
        if _leads_out(file) or "." not in file:
            raise Failed(f"Cgroup invalid file: {text}")
    return Jail(
        instance_id, program, base / name / instance_id / "root", uid, gid, parsed.single("netns"),
        "daemonize" in parsed.values, "new-pid-ns" in parsed.values, _limits(parsed), parsed.extra,
    )  # fmt: skip


def _canonical(path: str) -> Path:
    with _failing("Failed to canonicalize path {path}: {reason}", path):
        return Path(path).resolve(strict=True)


def _leads_out(path: str) -> bool:
    return path.startswith("/") or bool({".", ".."} & set(path.split("/")))


def _number(text: str, bits: int, message: str) -> int:
    if not text.isdigit() or int(text) >= 1 << bits:
        raise Failed(message.format(text))
    return int(text)


def _limits(parsed: Parsed) -> dict[str, int]:
    limits = {"no-file": _MAX_FILES}
    for text in parsed.several("resource-limit"):
        name, found, value = text.partition("=")
        if not found:
            raise Failed(f"Invalid format for resources limits: {text}")
        limit = _number(value, 64, "Invalid limit value for resource: {}: invalid digit found in string")
        if name not in _LIMITS:
            raise Failed(f"Invalid resource argument: {name}")
        limits[name] = limit
    return limits


def _copy(jail: Jail) -> None:
    """Copy the VMM into the chroot: through no link, and into no file with a second name."""
    source = os.open(jail.program, os.O_RDONLY)
    mode = stat.S_IMODE(os.fstat(source).st_mode)
    target = os.open(jail.copy, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, mode)
    if os.fstat(target).st_nlink > 1:
        raise Failed(f"Detected hard link at: {jail.copy}")
    _give(jail, target)
    while data := os.read(source, 1 << 20):
        os.write(target, data)
    os.close(source)
    os.close(target)


def _give(jail: Jail, file: int | Path) -> None:
    """Change a file's owner, as root."""
    if os.geteuid() == 0:
        os.chown(file, jail.uid, jail.gid)


def _make_folder(jail: Jail, path: Path) -> None:
    with _failing("Failed to create directory {path}: {reason}", path):
        path.mkdir(exist_ok=True)
    path.chmod(0o700)
    _give(jail, path)


def _make_device(jail: Jail, path: Path, device: int) -> None:
    """Make a device; where this user may not, an empty file."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, device)
    except PermissionError as error:
        if error.errno != errno.EPERM:
            raise
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    _give(jail, path)


def _daemonize() -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    for fd in range(3):
        os.dup2(null, fd)
    os.close(null)


def _start(jail: Jail, steps: _Steps) -> None:
    """Become the VMM, or start it and end."""
    if not jail.new_pid_ns:
        with steps("pid-file"):
            _write_pid(jail, os.getpid())
        _become(jail, steps, {})
        return
    leads_session = not jail.daemonize and os.getsid(0) == os.getpid()
    reader, writer = os.pipe()
    with steps("fork"):
        child = os.fork()
        if not child:
            if leads_session:
                os.setsid()
            os.set_inheritable(writer, True)
            _become(jail, steps, {READY: str(writer)})
    os.close(writer)
    os.read(reader, 1)  # as the real one, this does not end before the VMM is in its chroot
    with steps("pid-file"):
        _write_pid(jail, child)


def _write_pid(jail: Jail, pid: int) -> None:
    with _failing("Failed to open file {path}: {reason}", f"/{jail.copy.name}.pid"):
        fd = os.open(f"{jail.copy}.pid", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    os.write(fd, str(pid).encode())
    os.close(fd)


def _become(jail: Jail, steps: _Steps, ready: dict[str, str]) -> None:
    with steps("exec"):
        os.chdir(jail.root)
        now, cpu = time.monotonic_ns() // 1000, time.process_time_ns() // 1000
        times = ["--start-time-us", str(now), "--start-time-cpu-us", str(cpu), "--parent-cpu-time-us", str(cpu)]
        argv = [jail.copy, "--id", jail.instance_id, *times, *jail.extra]
        user = f"{jail.uid}:{jail.gid}" if os.geteuid() == 0 else "unprivileged"
        with _failing("Failed to exec into Firecracker: {reason}", jail.copy):
            os.execve(jail.copy, argv, {ROOT: user} | ready)
