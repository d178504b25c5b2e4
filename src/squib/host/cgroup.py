"""Limit a VM's memory, CPU time and processes with cgroups, version 1 or 2.

Groups are created below the topmost group that this user may change. For root that is the root group: beside systemd's
slices, not in them, because systemd ends what is in the slice of a session that ends. For other users it is the top of
what was delegated to them. Version 1 has one hierarchy per controller, version 2 one hierarchy for all controllers. A
hybrid host has both, and each controller is in only one of them. If no controller is available, the `Layout` has no
hierarchies and VMs run without these limits.

Sources: the kernel's ``admin-guide/cgroup-v2`` and ``admin-guide/cgroup-v1``; ``proc_pid_mountinfo(5)``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from squib.errors import HostError
from squib.models import Check, CheckStatus

CONTROLLERS = ("memory", "cpu", "pids")
_CPU_PERIOD_US = 100_000
_MINIMUM_CPU_QUOTA_US = 1_000
_POLL_S = 0.005
_CREATE_ATTEMPTS = 4


@dataclass(frozen=True)
class Limits:
    """The limits of a VM: its guest and its VMM together.

    ``cpus`` is a number of CPUs, such as 1.5.
    """

    memory_mib: int
    cpus: float
    pids: int


@dataclass(frozen=True)
class Hierarchy:
    """A mounted hierarchy.

    Groups are created below ``root`` for ``controllers``. ``version`` is 1 or 2.
    """

    version: int
    root: Path
    controllers: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """What this user can limit on this host.

    ``missing`` maps each unavailable controller to the reason.
    """

    hierarchies: tuple[Hierarchy, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Write:
    """A control file and the text to write to it.

    An ``optional`` file is skipped if the kernel lacks it.
    """

    path: Path
    text: str
    optional: bool = False


@dataclass(frozen=True)
class Plan:
    """The steps that create a group: directories, parents first, then writes.

    Writes are applied in order. Applying a plan again changes nothing.
    """

    directories: tuple[Path, ...]
    writes: tuple[Write, ...]


def find_layout() -> Layout:
    """Find out which controllers this user can limit VMs with.

    Reads ``/proc/self`` and the control files.
    """
    return layout_from(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())


def layout_from(mountinfo: str, own_groups: str, writable: Callable[[Path], bool] | None = None) -> Layout:
    """Compute the layout from the mounts and groups of this process.

    ``mountinfo`` and ``own_groups`` are the text of ``/proc/self/mountinfo`` and ``/proc/self/cgroup``. Reads the
    control files at the mount points. ``writable`` returns whether this user may write to a path.
    """
    writable = writable or _is_writable
    hierarchies: list[Hierarchy] = []
    missing = dict.fromkeys(CONTROLLERS, "the kernel lacks this controller, or it is not mounted")
    for mount in _mounts(mountinfo):
        own = _own_group(mount, own_groups)
        offered = mount.options if mount.version == 1 else _words(mount.path / "cgroup.controllers")
        for name in offered & missing.keys():
            missing[name] = f"{mount.path} is not writable and no group in it is delegated to this user"
        for folder in _from_the_top(mount.path, own):
            usable = offered if mount.version == 1 else _delegated(folder)
            found = tuple(name for name in CONTROLLERS if name in missing and name in usable)
            if found and all(writable(folder / name) for name in _CONTROL_FILES[mount.version]):
                hierarchies.append(Hierarchy(mount.version, folder, found))
                missing = {name: why for name, why in missing.items() if name not in found}
                break
    return Layout(tuple(hierarchies), missing)


_CONTROL_FILES = {1: ("", "cgroup.procs"), 2: ("", "cgroup.procs", "cgroup.subtree_control")}
"""What must be writable in a group, to create groups below it and move processes there. ``""`` is its directory."""


@dataclass(frozen=True)
class _Mount:
    version: int
    root: str
    path: Path
    options: frozenset[str]


def _mounts(mountinfo: str) -> list[_Mount]:
    """Return the mounted hierarchies.

    A line is: ids, device, root, mount point, options, …, ``-``, type, source, super options. In version 1 the super
    options are the names of the controllers.
    """
    found = []
    for line in mountinfo.splitlines():
        head, _, tail = line.partition(" - ")
        kind, _source, options = tail.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            root, path = head.split()[3:5]
            found.append(_Mount(2 if kind == "cgroup2" else 1, root, Path(path), frozenset(options.split(","))))
    return found


def _own_group(mount: _Mount, own_groups: str) -> Path:
    """Return the directory of this process's version 2 group.

    Returns the mount point for version 1, and if the group is not visible: a container sees only the part of the
    hierarchy below ``mount.root``.
    """
    own = next((line[3:] for line in own_groups.splitlines() if line.startswith("0::")), "/")
    if mount.version == 2 and ".." not in own:
        with contextlib.suppress(ValueError):
            return mount.path / PurePosixPath(own).relative_to(mount.root)
    return mount.path


def _from_the_top(top: Path, folder: Path) -> list[Path]:
    """Return the directories from ``top`` down to ``folder``, inclusive."""
    return [*(parent for parent in reversed(folder.parents) if parent.is_relative_to(top)), folder]


def _delegated(folder: Path) -> set[str]:
    """Return the controllers that groups below a version 2 group can use.

    A group that contains processes cannot enable controllers for groups below it. The root group is the exception. It
    is the only one without a file ``cgroup.type``.
    """
    usable = _words(folder / "cgroup.subtree_control")
    if not (folder / "cgroup.type").exists() or not _words(folder / "cgroup.procs"):
        usable |= _words(folder / "cgroup.controllers")
    return usable


def _is_writable(path: Path) -> bool:
    return os.access(path, os.W_OK)


def _words(path: Path) -> set[str]:
    try:
        return set(path.read_text().split())
    except FileNotFoundError:
        return set()


def plan(layout: Layout, name: str, limits: Limits) -> Plan:
    """Plan how to create the group ``name`` with ``limits``.

    ``name`` is a relative path.
    """
    directories: list[Path] = []
    writes: list[Write] = []
    for hierarchy in layout.hierarchies:
        group = hierarchy.root / name
        above = _from_the_top(hierarchy.root, group)[:-1]
        directories += [*above[1:], group]
        if hierarchy.version == 2:
            enable = " ".join(f"+{controller}" for controller in hierarchy.controllers)
            writes += [Write(folder / "cgroup.subtree_control", enable) for folder in above]
        for controller in hierarchy.controllers:
            writes += _LIMIT_WRITES[hierarchy.version, controller](group, limits)
    return Plan(tuple(directories), tuple(writes))


def _memory_v2(group: Path, limits: Limits) -> list[Write]:
    return [
        Write(group / "memory.max", str(limits.memory_mib << 20)),
        Write(group / "memory.swap.max", "0", optional=True),
        Write(group / "memory.oom.group", "1", optional=True),
    ]


def _cpu_v2(group: Path, limits: Limits) -> list[Write]:
    return [Write(group / "cpu.max", f"{_cpu_quota_us(limits)} {_CPU_PERIOD_US}")]


def _memory_v1(group: Path, limits: Limits) -> list[Write]:
    """Plan the memory limit of version 1.

    ``memsw`` limits memory and swap together. The kernel rejects a value below the memory limit, so it is lifted first.
    """
    size = str(limits.memory_mib << 20)
    both = group / "memory.memsw.limit_in_bytes"
    return [
        Write(both, "-1", optional=True),
        Write(group / "memory.limit_in_bytes", size),
        Write(both, size, optional=True),
    ]


def _cpu_v1(group: Path, limits: Limits) -> list[Write]:
    return [
        Write(group / "cpu.cfs_period_us", str(_CPU_PERIOD_US)),
        Write(group / "cpu.cfs_quota_us", str(_cpu_quota_us(limits))),
    ]


def _pids(group: Path, limits: Limits) -> list[Write]:
    return [Write(group / "pids.max", str(limits.pids))]


def _cpu_quota_us(limits: Limits) -> int:
    return max(_MINIMUM_CPU_QUOTA_US, round(limits.cpus * _CPU_PERIOD_US))


_LIMIT_WRITES: Mapping[tuple[int, str], Callable[[Path, Limits], list[Write]]] = {
    (1, "memory"): _memory_v1,
    (2, "memory"): _memory_v2,
    (1, "cpu"): _cpu_v1,
    (2, "cpu"): _cpu_v2,
    (1, "pids"): _pids,
    (2, "pids"): _pids,
}


def create(layout: Layout, name: str, limits: Limits) -> None:
    """Create the group ``name``, or change its limits if it exists.

    Raises `HostError`.
    """
    wanted = plan(layout, name, limits)
    try:
        for _ in range(_CREATE_ATTEMPTS):
            # Removing another VM's group also removes empty parents, possibly one that was just created here.
            with contextlib.suppress(FileNotFoundError):
                return _apply(wanted)
        return _apply(wanted)
    except OSError as error:
        raise _failed(name, error) from error


def _apply(wanted: Plan) -> None:
    for folder in wanted.directories:
        folder.mkdir(exist_ok=True)
    for write in wanted.writes:
        if not write.optional or write.path.exists():
            write.path.write_text(write.text)


def directories(layout: Layout, name: str) -> tuple[Path, ...]:
    """Return the group's directory in each hierarchy.

    To join, a process writes its pid to each ``cgroup.procs``.
    """
    return tuple(hierarchy.root / name for hierarchy in layout.hierarchies)


def remove(layout: Layout, name: str, *, timeout_s: float = 5.0) -> None:
    """Kill the processes in a group, and remove it and its empty parents.

    Idempotent. Blocks until the processes have ended, which usually takes milliseconds.

    Raises `HostError` after ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    for hierarchy in layout.hierarchies:
        group = hierarchy.root / name
        try:
            _remove(group, deadline)
            for parent in _from_the_top(hierarchy.root, group)[-2:0:-1]:
                parent.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EBUSY, errno.ENOTEMPTY):
                raise _failed(name, error) from error


def _remove(group: Path, deadline: float) -> None:
    while group.exists():
        _kill_members(group)
        try:
            group.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            if time.monotonic() > deadline:
                raise HostError(f"processes in {group} were killed and did not end: {members(group)}") from error
            time.sleep(_POLL_S)


def _kill_members(group: Path) -> None:
    for pid in members(group):
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            try:
                if pid in members(group):  # still a member, so the pidfd is not of a newer process with its pid
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            finally:
                os.close(pidfd)


def members(group: Path) -> list[int]:
    """Return the pids in the group at this directory.

    Processes of other pid namespaces, listed as 0, are omitted.
    """
    return [int(pid) for pid in sorted(_words(group / "cgroup.procs")) if pid != "0"]


def children(layout: Layout, name: str) -> set[str]:
    """Return the names of the groups directly below ``name``.

    Includes the groups of all hierarchies.
    """
    folders = [folder for folder in directories(layout, name) if folder.is_dir()]
    return {entry.name for folder in folders for entry in folder.iterdir() if entry.is_dir()}


def _failed(name: str, error: OSError) -> HostError:
    place = f" ({error.filename})" if error.filename else ""
    return HostError(f"cgroup {name} could not be changed: {error.strerror}{place}", hint="squib doctor")


def check(layout: Layout) -> Check:
    """Return the check of limits for `squib doctor`."""
    if layout.missing:
        without = "; ".join(f"{name}: {why}" for name, why in layout.missing.items())
        return Check(name="cgroups", status=CheckStatus.WARN, detail=f"VMs run without some limits. {without}")
    places = ", ".join(sorted({f"{hierarchy.root} (v{hierarchy.version})" for hierarchy in layout.hierarchies}))
    return Check(name="cgroups", status=CheckStatus.OK, detail=f"memory, cpu and pids are limited in {places}")
