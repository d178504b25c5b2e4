"""What the parts of a stub VMM share: its settings, its log, its view of paths, and its end."""

from __future__ import annotations

import errno
import importlib
import os
import sys
import time
from typing import NamedTuple

from tests.fakes.firecracker.arguments import parse_version
from tests.fakes.firecracker.settings import Settings

ROOT = "STUB_CHROOT"
"""Set by the stub jailer. ``UID:GID``: make the working directory the root, and become this user.

Anything else: behave as if the working directory were ``/``."""
READY = "STUB_READY_FD"
"""Set by the stub jailer: a descriptor to close when the process is in its chroot."""
_MUSL = {errno.EADDRINUSE: "Address in use", errno.ENAMETOOLONG: "Filename too long"}
_LEVELS = ("off", "error", "warn", "info", "debug", "trace")


class Options(NamedTuple):
    """What the command line says."""

    instance_id: str
    api_socket: str
    payload_limit: int = 51200
    pci: bool = False


def host_path(path: str) -> str:
    """Return where a path of the VMM is on the host, relative to its working directory."""
    if os.environ.get(ROOT) and path.startswith("/"):
        return path.lstrip("/") or "."
    return path


def enter_chroot(settings: Settings) -> None:
    """Make the working directory the root, which the stub jailer cannot do, because Python is not there."""
    user = os.environ.get(ROOT, "")
    if ":" in user:
        load_guest(settings)
        time.tzset()
        os.chroot(".")
        uid, gid = map(int, user.split(":"))
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    if ready := os.environ.get(READY):
        os.close(int(ready))


def load_guest(settings: Settings) -> None:
    """Import what guests are made of, which is not in the standard library."""
    sys.path.extend(settings.values["python_path"])
    importlib.import_module("tests.fakes.agent")


def reason(error: OSError) -> str:
    """Return an error of the system as Rust prints it, with the words of musl, which Firecracker is linked with."""
    text = _MUSL.get(error.errno or 0) or os.strerror(error.errno or 0)
    return f"{text} (os error {error.errno})"


class Log:
    """Firecracker's log: standard output, until there is a file."""

    def __init__(self, instance_id: str = "anonymous-instance") -> None:
        self.instance_id = instance_id
        self.show_level = self.show_origin = False
        self.level = "info"
        self._fd = 1

    def open(self, path: str) -> None:
        """Write to a file or a named pipe from now on; raise `OSError`."""
        self._fd = open_nonblocking(path)

    def write(self, message: str, level: str = "info", thread: str = "main") -> None:
        """Write one line, if it is important enough. A line that cannot be written is lost."""
        if _LEVELS.index(level) > _LEVELS.index(self.level):
            return
        now = time.time_ns()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(now // 10**9)) + f".{now % 10**9:09}"
        shown = f":{level.upper()}" if self.show_level else ""
        origin = ":stub.rs:1" if self.show_origin else ""
        write_all(self._fd, f"{stamp} [{self.instance_id}:{thread}{shown}{origin}] {message}\n".encode())


def open_nonblocking(path: str) -> int:
    """Open a file or a named pipe for output, as Firecracker does; raise `OSError`."""
    return os.open(host_path(path), os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)


def write_all(fd: int, data: bytes) -> None:
    """Write to a log or console; drop what does not fit."""
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError:
        return


class Context(NamedTuple):
    """Everything that outlives a request."""

    settings: Settings
    options: Options
    log: Log

    @property
    def version(self) -> str:
        return str(self.settings.values["version"])

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor version."""
        return parse_version(self.version)
