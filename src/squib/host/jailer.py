"""Start a VMM in a jail, and remove all files from its view.

In order: join the VMM's cgroup, create its namespaces, start it, remove the files. A VMM that brings its own jailer, as
Firecracker does, gets a chroot prepared instead (`execute_with_chroot`).

A program, not a library: see `squib.host.jail`. A bare interpreter runs it as a script. It imports nothing from squib,
and no module whose import takes milliseconds (json, socket, signal, contextlib, typing, pathlib), because every launch
of a VM waits for it. Its argument is the file descriptor of a socket (SOCK_SEQPACKET). There it receives the plan, a
marshalled dictionary with the fields of `squib.host.jail.Plan`, and sends these reports, one message each:

- ``pid N``: the VMM's process exists;
- ``started``: the process has executed the VMM's program, which may still be loading its libraries;
- ``sealed``: the engine asked for the seal by sending one byte, and the VMM's root is now an empty read-only directory;
- ``error TEXT`` instead of any of these.

The VMM is a child of the engine, not of this process (CLONE_PARENT), so that the engine can wait for it. This process
keeps its capabilities in the VMM's namespaces until the seal. If the engine ends before the seal, this process kills
the VMM. So a VMM that is not sealed never runs a guest.

Sources: ``clone(2)``, ``pivot_root(2)``, ``mount_setattr(2)``, ``user_namespaces(7)``, ``capabilities(7)``.
"""

from __future__ import annotations

import ctypes
import marshal
import os
import resource
import select
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MOUNT_POINT = "/proc"
"""Where the new root is mounted for a moment. Any directory that exists on every host would do."""
CHROOT_INODES = 64
"""How many files a chroot can hold. Firecracker and its jailer create about fifteen."""
OLD_ROOT, VIEW = "/old", "/view"
"""Directories in the new root: the former root, and the root that the VMM sees."""

# System calls that not every C library has a function for (asm/unistd.h).
NR_CLONE, NR_PIVOT_ROOT = {"x86_64": (56, 155), "aarch64": (220, 41)}[os.uname().machine]
NR_PIDFD_SEND_SIGNAL, NR_MOUNT_SETATTR = 424, 442

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2  # linux/prctl.h, linux/seccomp.h

# linux/sched.h
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x0002_0000, 0x0400_0000, 0x0800_0000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x1000_0000, 0x2000_0000, 0x4000_0000
CLONE_PIDFD, CLONE_PARENT = 0x1000, 0x8000
NAMESPACES = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET

# linux/mount.h, linux/fcntl.h
MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x4_0000
MNT_DETACH = 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 1, 2, 4, 8
AT_FDCWD, AT_RECURSIVE = -100, 0x8000

# linux/prctl.h, linux/capability.h
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 24, 38, 47, 4
CAPABILITY_VERSION_3 = 0x2008_0522
CAPABILITY_COUNT = 64

# asm/signal.h
SIGKILL, SIGPIPE, SIGCHLD, SIGXFSZ = 9, 13, 17, 25
SIG_DFL = None

libc = ctypes.CDLL(None, use_errno=True)


class Program(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p)]


class Failed(Exception):
    """A step failed. The text says which one, and why."""


class step:
    """Convert an `OSError` in the block into `Failed`.

    The error's text is ``what`` and the reason.
    """

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise Failed(f"{self._what}: {error.strerror}") from error


def call(result: int) -> int:
    """Return the result of a C library function, or raise its `OSError`."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


class MountAttributes(ctypes.Structure):
    """``struct mount_attr``."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    names = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    call(libc.mount(*names, ctypes.c_ulong(flags), None if data is None else data.encode()))


def restrict(target: str, attributes: int) -> None:
    """Add attributes to a mount and to all mounts below it."""
    wanted = MountAttributes(attr_set=attributes)
    size = ctypes.c_size_t(ctypes.sizeof(wanted))
    path = ctypes.c_char_p(os.fsencode(target))
    call(libc.syscall(NR_MOUNT_SETATTR, AT_FDCWD, path, AT_RECURSIVE, ctypes.byref(wanted), size))


def main() -> int:
    engine = int(sys.argv[1])
    os.set_inheritable(engine, False)
    plan = os.read(engine, 1 << 20)
    try:
        if plan:  # empty if the engine has ended
            launch(marshal.loads(plan), engine)
    except Failed as error:
        report(engine, f"error {error}")
    except (BrokenPipeError, ConnectionResetError):
        return 1  # the engine has ended
    return 0


def launch(plan: dict[str, Any], engine: int) -> None:
    join_cgroups(plan["cgroups"])
    if plan["mode"] == "chroot":
        execute_with_chroot(plan)
    view: View | None = None
    if plan["mode"] != "none":
        view = View()
        isolate(plan, view)
    status_read, status_write = os.pipe()
    pid, pidfd = clone()
    if pid == 0:
        become_vmm(plan, status_write)
    try:
        report(engine, f"pid {pid}")
        os.close(status_write)
        if failure := os.read(status_read, 65536):  # exec closes the pipe; before that, an error is written to it
            raise Failed(failure.decode())
        report(engine, "started")
        if not wait_for_engine(engine, pidfd):
            return
        if view:
            view.seal()
        report(engine, "sealed")
    except BaseException:  # whatever happened, the VMM must not run without its jail
        libc.syscall(NR_PIDFD_SEND_SIGNAL, pidfd, SIGKILL, None, 0)
        raise


def report(engine: int, text: str) -> None:
    os.write(engine, text.encode())


def wait_for_engine(engine: int, pidfd: int) -> bool:
    """Wait until the engine asks for the seal.

    Return whether it did; ``False``: the VMM has ended.

    Raises `BrokenPipeError` if the engine has ended.
    """
    poller = select.poll()
    poller.register(engine, select.POLLIN)
    poller.register(pidfd, select.POLLIN)
    ready = dict(poller.poll())
    if pidfd in ready:
        return False
    if not os.read(engine, 1):
        raise BrokenPipeError
    return True


def join_cgroups(groups: list[str]) -> None:
    for group in groups:
        with step(f"cannot join the cgroup {group}"), open(f"{group}/cgroup.procs", "w") as file:  # noqa: PTH123
            file.write("0")  # 0 means the writing process


def isolate(plan: dict[str, Any], view: View) -> None:
    """Enter new namespaces, with a root that contains what the plan lists."""
    os.umask(0o022)  # the VMM's user must be able to read the directories that are created here
    if plan["mode"] == "user namespace":
        with step("cannot create a user namespace"):
            enter_user_namespace()
    with step("cannot create namespaces"):
        call(libc.unshare(NAMESPACES))
    with step("cannot make the mounts private"):
        mount(None, "/", None, MS_REC | MS_PRIVATE)
    with step("cannot mount a new root"):
        mount("squib", MOUNT_POINT, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0755,size=1M")
        os.mkdir(MOUNT_POINT + OLD_ROOT)  # noqa: PTH102 (no pathlib here: it takes 5 ms to import)
        os.mkdir(MOUNT_POINT + VIEW)  # noqa: PTH102
        os.chdir(MOUNT_POINT)
        call(libc.syscall(NR_PIVOT_ROOT, b".", OLD_ROOT[1:].encode()))
        os.chdir("/")
    for path, target in plan["view"]["links"]:
        with step(f"cannot link {path} in the new root"):
            view.link(path, target)
    for bind in plan["view"]["binds"]:
        with step(f"cannot mount {bind['path']} in the new root"):
            view.bind(bind["path"], directory=bind["directory"])
    with step("cannot detach the old root"):
        call(libc.umount2(OLD_ROOT.encode(), MNT_DETACH))
        os.rmdir(OLD_ROOT)  # noqa: PTH106


def execute_with_chroot(plan: dict[str, Any]) -> None:
    """Prepare a directory for a program that makes it its root; execute it.

    Never returns. This process keeps its user and its capabilities: the program, such as Firecracker's jailer, drops
    them. The directory is on a tmpfs that only this process sees, so it is gone when the process has ended.
    """
    os.umask(0o022)
    with step("cannot create namespaces"):
        call(libc.unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET))
    with step("cannot make the mounts private"):
        mount(None, "/", None, MS_REC | MS_PRIVATE)
    with step(f"cannot mount {plan['base']}"):
        options = f"mode=0755,size={plan['size_mib']}M,nr_inodes={CHROOT_INODES}"
        mount("squib", plan["base"], "tmpfs", MS_NOSUID, options)
        os.makedirs(plan["root"])  # noqa: PTH103
    for file in plan["files"]:
        with step(f"cannot mount {file['source']} in the chroot"):
            target = f"{plan['root']}/{file['name']}"
            os.mknod(target, 0o600)
            mount(file["source"], target, None, MS_BIND)
            read_only = MOUNT_ATTR_RDONLY if file["read_only"] else 0
            restrict(target, read_only | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC)
    with step(f"cannot execute {plan['program']}"):
        reset_signals()
        os.execve(plan["program"], plan["argv"], {})


def enter_user_namespace() -> None:
    """Enter a user namespace that maps only this user, with the same ids."""
    uid, gid = os.geteuid(), os.getegid()
    call(libc.unshare(CLONE_NEWUSER))
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123
            file.write(text)


class View:
    """The VMM's root directory until the seal."""

    def __init__(self) -> None:
        self._mounted: list[str] = []
        self._directories: list[str] = []
        self._files: list[str] = []

    def link(self, path: str, target: str) -> None:
        self._make_parents(path)
        os.symlink(target, VIEW + path)  # noqa: PTH211
        self._files.append(VIEW + path)

    def bind(self, path: str, *, directory: bool) -> None:
        """Bind-mount the host's ``path`` read-only.

        A device on a read-only mount can still be written to.
        """
        self._make_parents(path)
        target = VIEW + path
        if directory:
            os.mkdir(target)  # noqa: PTH102
            self._directories.append(target)
        else:
            os.mknod(target, 0o600)
            self._files.append(target)
        mount(OLD_ROOT + path, target, None, MS_BIND | MS_REC)
        self._mounted.append(target)
        restrict(target, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | (MOUNT_ATTR_NODEV if directory else 0))

    def _make_parents(self, path: str) -> None:
        above = VIEW
        for name in path.split("/")[1:-1]:
            above = f"{above}/{name}"
            if above not in self._directories:
                os.mkdir(above)  # noqa: PTH102
                self._directories.append(above)

    def seal(self) -> None:
        """Remove all that this object created; make the root read-only."""
        with step("cannot empty the VMM's root"):
            for target in reversed(self._mounted):
                call(libc.umount2(os.fsencode(target), MNT_DETACH))
            for path in self._files:
                os.unlink(path)  # noqa: PTH108
            for path in reversed(self._directories):
                os.rmdir(path)  # noqa: PTH106
            restrict("/", MOUNT_ATTR_RDONLY)


def clone() -> tuple[int, int]:
    """Fork a child of this process's parent.

    Return its pid as this process sees it, and a pidfd; 0 in the child.

    The C library's clone() needs a new stack, so the system call is made directly.
    """
    pidfd = ctypes.c_int(-1)
    none = ctypes.c_void_p(None)
    flags = ctypes.c_ulong(CLONE_PARENT | CLONE_PIDFD | SIGCHLD)
    with step("cannot create the VMM's process"):
        pid = call(libc.syscall(NR_CLONE, flags, none, ctypes.byref(pidfd), none, none))
    return pid, pidfd.value


def become_vmm(plan: dict[str, Any], status: int) -> None:
    """Drop all privileges of this process, the VMM's, and execute the program.

    Never returns.

    An error is written to the pipe ``status``.
    """
    try:
        with step("cannot drop its privileges"):
            os.setsid()
            if plan["mode"] != "none":
                # chroot, not pivot_root: the kernel forbids a process in a chroot to create user namespaces.
                os.chroot(VIEW)
            os.chdir(plan["cwd"])
            os.umask(0o077)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            reset_signals()
            drop_privileges(plan["credentials"])
            if plan["filter"]:
                install_filter(plan["filter"])
        with step(f"cannot execute {plan['program']}"):
            os.execve(plan["program"], plan["argv"], {"PATH": os.environ["PATH"]})
    except Failed as error:
        os.write(status, str(error).encode())
    finally:
        os._exit(127)


def reset_signals() -> None:
    """Handle all signals as usual: the interpreter ignores two, and exec would keep that."""
    for number in (SIGPIPE, SIGXFSZ):
        libc.signal(number, SIG_DFL)


def drop_privileges(credentials: dict[str, Any] | None) -> None:
    """Become the user of ``credentials``, and drop all capabilities.

    This process and the programs it executes cannot gain capabilities again.
    """
    for capability in range(CAPABILITY_COUNT):
        # Fails for capabilities that the kernel does not know, and for users without CAP_SETPCAP. Both are harmless.
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    if credentials:
        os.setgroups(credentials["groups"])
        os.setresgid(*[credentials["gid"]] * 3)
        os.setresuid(*[credentials["uid"]] * 3)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    call(libc.capset(header, (ctypes.c_uint32 * 6)()))
    call(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def install_filter(code: bytes) -> None:
    """Install a seccomp filter.

    It holds for this process and all programs that it executes.
    """
    instructions = ctypes.create_string_buffer(code, len(code))
    program = Program(len(code) // 8, ctypes.addressof(instructions))
    call(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0))


if __name__ == "__main__":
    os._exit(main())  # nothing to flush, and a normal exit of the interpreter takes 2 ms
