"""Attacks from inside a VMM's jail. A bare interpreter runs this file in place of the VMM.

``escape.py FD``: says ``ready`` on the socket FD, waits for a JSON object that names the targets (after the seal),
tries everything, and answers with a JSON object: the name of each attempt, and ``done`` or the error that it met.
"""
# ruff: noqa: PTH101, PTH102, PTH109, PTH208, PTH211

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable

libc = ctypes.CDLL(None, use_errno=True)
SYSTEM = {
    "x86_64": {
        "clone": 56,
        "ptrace": 101,
        "mknodat": 259,
        "reboot": 169,
        "bpf": 321,
        "open_by_handle_at": 304,
        "keyctl": 250,
    }
}
NR = SYSTEM[os.uname().machine]
NR_IO_URING_SETUP, NR_PIDFD_OPEN = 425, 434
CLONE_NEWUSER, CLONE_NEWNS = 0x1000_0000, 0x2_0000
AF_VSOCK = 40


def call(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), "")


def attempt(act: Callable[[], object]) -> str:
    try:
        act()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


def connect(family: int, address: object, kind: int = socket.SOCK_STREAM) -> None:
    with socket.socket(family, kind) as client:
        client.settimeout(5)
        client.connect(address)  # type: ignore[arg-type]


def write(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))


def user_namespace_by_clone() -> None:
    pid = libc.syscall(NR["clone"], ctypes.c_ulong(CLONE_NEWUSER | signal.SIGCHLD), 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    call(pid)


def new_user_namespace_and_mount() -> None:
    call(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS))
    call(libc.mount(b"x", b"/", b"tmpfs", 0, None))


def open_by_handle() -> None:
    handle = (ctypes.c_uint32 * 4)(8, 1, 2, 0)  # struct file_handle: size, type, and the inode of a root directory
    call(libc.syscall(NR["open_by_handle_at"], -100, handle, 0))


def capabilities() -> None:
    header = (ctypes.c_uint32 * 2)(0x2008_0522, 0)
    call(libc.capset(header, (ctypes.c_uint32 * 6)(*[0xFFFF_FFFF] * 6)))


def directories() -> list[int]:
    """The descriptors of directories that this process has."""
    found = []
    for fd in range(1024):
        try:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                found.append(fd)
        except OSError:
            continue
    return found


def file_attempts(secret: str) -> dict[str, Callable[[], object]]:
    paths = {
        "the password file": "/etc/passwd",
        "a program": "/usr/bin/env",
        "process 1": "/proc/1/cmdline",
        "itself in /proc": "/proc/self/root/etc/passwd",
        "a descriptor in /proc": "/proc/self/fd/0",
        "a secret of the state directory": secret,
        "a file above the root": "../../../../../../etc/passwd",
        "/dev/null": "/dev/null",
        "/dev/kvm": "/dev/kvm",
        "the disk": "/dev/vda",
        "sysfs": "/sys/kernel/uevent_seqnum",
    }
    reads = {f"open {name}": lambda path=path: os.open(path, os.O_RDONLY) for name, path in paths.items()}
    return reads | {
        "create a file": lambda: write("/file"),
        "create a directory": lambda: os.mkdir("/directory"),
        "create a link": lambda: os.symlink("/etc", "/link"),
        "change the mode of the root": lambda: os.chmod("/", 0o777),
        "execute a shell": lambda: os.execv("/bin/sh", ["sh"]),
        "leave the root": lambda: os.chroot(".."),
        "open a file by its handle": open_by_handle,
    }


def network_attempts(port: int, abstract: str, path: str) -> dict[str, Callable[[], object]]:
    return {
        "connect to 127.0.0.1": lambda: connect(socket.AF_INET, ("127.0.0.1", port)),
        "connect to ::1": lambda: connect(socket.AF_INET6, ("::1", port)),
        "connect to another host": lambda: connect(socket.AF_INET, ("192.0.2.1", 80)),
        "send a datagram": lambda: connect(socket.AF_INET, ("192.0.2.1", 53), socket.SOCK_DGRAM),
        "connect to an abstract socket": lambda: connect(socket.AF_UNIX, "\0" + abstract),
        "connect to a socket by its path": lambda: connect(socket.AF_UNIX, path),
        "open a raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1),
        "open a packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0),
        "open a socket to the hypervisor": lambda: socket.socket(AF_VSOCK, socket.SOCK_STREAM),
        "open a socket to the kernel's cryptography": lambda: socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET),
        "set up io_uring": lambda: call(libc.syscall(NR_IO_URING_SETUP, 1, bytes(120))),
        "read a keyring": lambda: call(libc.syscall(NR["keyctl"], 0, -3, 0, 0, 0)),
    }


def process_attempts(victim: int) -> dict[str, Callable[[], object]]:
    return {
        "signal another process": lambda: os.kill(victim, signal.SIGKILL),
        "signal all processes": lambda: os.kill(-1, 0),
        "signal the parent's group": lambda: os.killpg(victim, signal.SIGKILL),
        "open another process": lambda: call(libc.syscall(NR_PIDFD_OPEN, victim, 0)),
        "trace another process": lambda: call(libc.syscall(NR["ptrace"], 16, victim, 0, 0)),
        "change the limits of another process": lambda: call(libc.prlimit(victim, 7, None, (ctypes.c_uint64 * 2)())),
    }


def privilege_attempts() -> dict[str, Callable[[], object]]:
    return {
        "become root": lambda: os.setresuid(0, 0, 0),
        "become another user": lambda: os.setresuid(1, 1, 1),
        "become another group": lambda: os.setresgid(1, 1, 1),
        "get groups": lambda: os.setgroups([0]),
        "get capabilities": capabilities,
        "mount": lambda: call(libc.mount(b"x", b"/", b"tmpfs", 0, None)),
        "bind": lambda: call(libc.mount(b"/", b"/", None, 4096, None)),
        "make the root writable": lambda: call(libc.mount(None, b"/", None, 32, None)),
        "unmount": lambda: call(libc.umount2(b"/", 2)),
        "make a user namespace": lambda: call(libc.unshare(CLONE_NEWUSER)),
        "make a user namespace by clone": user_namespace_by_clone,
        "make a user namespace and mount": new_user_namespace_and_mount,
        "make a mount namespace": lambda: call(libc.unshare(CLONE_NEWNS)),
        "make a device": lambda: call(libc.syscall(NR["mknodat"], -100, b"/disk", stat.S_IFBLK | 0o600, 0xFE00)),
        "change the host name": lambda: socket.sethostname("x"),
        "restart the host": lambda: call(libc.syscall(NR["reboot"], 0xFEE1DEAD, 672274793, 0, 0)),
        "load a program into the kernel": lambda: call(libc.syscall(NR["bpf"], 5, bytes(120), 120)),
    }


def main() -> None:
    engine = socket.socket(fileno=int(sys.argv[1]))
    engine.sendall(b"ready\n")
    targets = json.loads(engine.recv(65536))
    report: dict[str, object] = {
        "list the root": os.listdir("/"),
        "the working directory": os.getcwd(),
        "descriptors of directories": directories(),
        "parent": os.getppid(),
        "own pid": os.getpid(),
        "groups": os.getgroups(),
        "no new privileges": libc.prctl(39, 0, 0, 0, 0),
        "capabilities in the bounding set": [number for number in range(64) if libc.prctl(23, number, 0, 0, 0) == 1],
    }
    attempts = (
        file_attempts(targets["secret"])
        | network_attempts(targets["port"], targets["abstract"], targets["socket"])
        | process_attempts(targets["victim"])
        | privilege_attempts()
    )
    wanted = targets["attempts"] or attempts
    report |= {name: attempt(attempts[name]) for name in wanted}
    engine.sendall(json.dumps(report).encode())
    engine.recv(1)


main()
