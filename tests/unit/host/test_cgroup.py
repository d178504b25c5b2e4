"""Where control groups go on hosts of all kinds, and what is written there.

The hierarchies are directories of plain files.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest

from squib.errors import HostError
from squib.host import cgroup
from squib.host.cgroup import Hierarchy, Layout, Limits, Write, layout_from
from squib.models import CheckStatus

LIMITS = Limits(memory_mib=384, cpus=1.5, pids=256)
SIZE = str(384 << 20)


@dataclass(frozen=True)
class FakeHost:
    """A host whose mount points are directories below ``root``."""

    root: Path

    def mountinfo(self, *lines: str) -> str:
        """Lines of ``ROOT MOUNT_POINT TYPE OPTIONS`` among others, as the kernel prints them."""
        entries = [f"{number} 23 0:28 {line}" for number, line in enumerate(lines, 31)]
        other = f"22 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n23 22 0:5 / {self.root} rw - tmpfs tmpfs rw\n"
        return other + "".join(f"{entry}\n" for entry in entries)

    def mount(self, root: str, point: str, kind: str, options: str) -> str:
        return f"{root} {self.root}{point} rw,relatime shared:9 - {kind} {kind} {options}"

    def group(
        self, path: str, *, controllers: str = "", enabled: str = "", procs: str = "", is_root: bool = False
    ) -> Path:
        """A group of version 2 with its control files."""
        folder = self.root / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup.controllers").write_text(controllers)
        (folder / "cgroup.subtree_control").write_text(enabled)
        (folder / "cgroup.procs").write_text(procs)
        if not is_root:
            (folder / "cgroup.type").write_text("domain\n")
        return folder

    def unified(self, own_group: str = "/", *, delegated: str = ".") -> Layout:
        """The layout for a process in ``own_group`` that may write to what is at and below ``delegated``."""
        text = self.mountinfo(self.mount("/", "", "cgroup2", "rw,nsdelegate,memory_recursiveprot"))
        return layout_from(text, f"0::{own_group}\n", lambda path: path.is_relative_to(self.root / delegated))


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


def test_version_2_on_a_systemd_host(host: FakeHost) -> None:
    """Root's engine in a login session: beside the slices, not in the session."""
    host.group(".", controllers="cpuset cpu io memory pids\n", enabled="memory pids", procs="2\n3\n", is_root=True)
    host.group("user.slice/user-0.slice/session-1.scope", procs="99\n")
    layout = host.unified("/user.slice/user-0.slice/session-1.scope")
    assert layout == Layout((Hierarchy(2, host.root, ("memory", "cpu", "pids")),), {})


def test_version_1(host: FakeHost) -> None:
    """One hierarchy per controller; cpu and cpuacct are often mounted together, and named ones have no controller."""
    text = host.mountinfo(
        host.mount("/", "/systemd", "cgroup", "rw,name=systemd"),
        host.mount("/", "/cpu,cpuacct", "cgroup", "rw,cpu,cpuacct"),
        host.mount("/", "/memory", "cgroup", "rw,memory"),
        host.mount("/", "/pids", "cgroup", "rw,pids"),
        host.mount("/", "/unified", "cgroup2", "rw"),
    )
    host.group("unified", controllers="hugetlb", is_root=True)
    layout = layout_from(text, "3:pids:/\n2:memory:/elsewhere\n1:cpu,cpuacct:/\n0::/\n", lambda path: True)
    assert layout.hierarchies == (
        Hierarchy(1, host.root / "cpu,cpuacct", ("cpu",)),
        Hierarchy(1, host.root / "memory", ("memory",)),
        Hierarchy(1, host.root / "pids", ("pids",)),
    )
    assert layout.missing == {}


def test_a_hybrid_host_has_each_controller_in_one_place(host: FakeHost) -> None:
    text = host.mountinfo(
        host.mount("/", "/memory", "cgroup", "rw,memory"), host.mount("/", "/unified", "cgroup2", "rw")
    )
    host.group("unified", controllers="cpu pids", is_root=True)
    layout = layout_from(text, "1:memory:/\n0::/\n", lambda path: True)
    assert layout.hierarchies == (
        Hierarchy(1, host.root / "memory", ("memory",)),
        Hierarchy(2, host.root / "unified", ("cpu", "pids")),
    )


def test_a_user_with_a_delegated_subtree(host: FakeHost) -> None:
    """systemd gives a user's manager its own service, and the manager has enabled the controllers there."""
    for folder in (".", "user.slice", "user.slice/user-1000.slice"):
        host.group(folder, controllers="cpu memory pids", enabled="cpu memory pids", is_root=folder == ".")
    service = "user.slice/user-1000.slice/user@1000.service"
    manager = host.group(service, controllers="cpu memory pids", enabled="memory pids")
    host.group(f"{service}/app.slice/squib.scope", procs="99\n")
    layout = host.unified(f"/{service}/app.slice/squib.scope", delegated=service)
    assert layout.hierarchies == (Hierarchy(2, manager, ("memory", "cpu", "pids")),)


def test_a_user_without_delegation_has_no_limits(host: FakeHost) -> None:
    host.group(".", controllers="cpu memory pids", is_root=True)
    host.group("user.slice", controllers="memory pids")
    layout = host.unified("/user.slice", delegated="nothing")
    assert layout.hierarchies == ()
    assert set(layout.missing) == {"memory", "cpu", "pids"}
    assert "delegated" in layout.missing["memory"]


def test_a_group_with_processes_of_its_own_cannot_be_divided(host: FakeHost) -> None:
    """A container with a cgroup namespace: its mount point is not the root of all, and its processes are in it."""
    container = host.group(".", controllers="cpu memory pids", procs="1\n7\n")
    assert host.unified().hierarchies == ()
    (container / "cgroup.subtree_control").write_text("memory")  # somebody divided it before the processes came
    assert host.unified().hierarchies == (Hierarchy(2, host.root, ("memory",)),)
    (container / "cgroup.procs").write_text("")
    assert host.unified().hierarchies == (Hierarchy(2, host.root, ("memory", "cpu", "pids")),)


def test_a_container_without_a_namespace_sees_its_part_of_the_hierarchy(host: FakeHost) -> None:
    host.group(".", controllers="cpu memory pids", procs="")
    own = host.group("init", controllers="memory", procs="1\n")
    text = host.mountinfo(host.mount("/docker/5c1", "", "cgroup2", "rw"))
    layout = layout_from(text, "0::/docker/5c1/init\n", lambda path: path.parent != own)
    assert layout.hierarchies == (Hierarchy(2, host.root, ("memory", "cpu", "pids")),)


def test_a_read_only_mount_gives_nothing(host: FakeHost) -> None:
    text = host.mountinfo(host.mount("/docker/5c1", "/memory", "cgroup", "ro,memory"))
    layout = layout_from(text, "1:memory:/docker/5c1\n", lambda path: False)
    assert layout.hierarchies == ()
    assert "is not writable" in layout.missing["memory"]
    assert "not mounted" in layout.missing["cpu"]


def test_this_host_can_be_read() -> None:
    layout = cgroup.find_layout()
    offered = {name for hierarchy in layout.hierarchies for name in hierarchy.controllers}
    assert offered | set(layout.missing) == set(cgroup.CONTROLLERS)
    assert not offered & set(layout.missing)


def test_the_plan_for_version_2_enables_controllers_on_the_way_down() -> None:
    root = Path("/cg")
    plan = cgroup.plan(Layout((Hierarchy(2, root, ("memory", "cpu", "pids")),)), "squib/home/vm", LIMITS)
    group = root / "squib/home/vm"
    assert plan.directories == (root / "squib", root / "squib/home", group)
    assert plan.writes == (
        Write(root / "cgroup.subtree_control", "+memory +cpu +pids"),
        Write(root / "squib/cgroup.subtree_control", "+memory +cpu +pids"),
        Write(root / "squib/home/cgroup.subtree_control", "+memory +cpu +pids"),
        Write(group / "memory.max", SIZE),
        Write(group / "memory.swap.max", "0", optional=True),
        Write(group / "memory.oom.group", "1", optional=True),
        Write(group / "cpu.max", "150000 100000"),
        Write(group / "pids.max", "256"),
    )


def test_the_plan_for_version_1_never_has_memsw_below_memory() -> None:
    layout = Layout((Hierarchy(1, Path("/m"), ("memory",)), Hierarchy(1, Path("/c"), ("cpu",))))
    plan = cgroup.plan(layout, "squib/vm", LIMITS)
    assert plan.directories == (Path("/m/squib"), Path("/m/squib/vm"), Path("/c/squib"), Path("/c/squib/vm"))
    assert plan.writes == (
        Write(Path("/m/squib/vm/memory.memsw.limit_in_bytes"), "-1", optional=True),
        Write(Path("/m/squib/vm/memory.limit_in_bytes"), SIZE),
        Write(Path("/m/squib/vm/memory.memsw.limit_in_bytes"), SIZE, optional=True),
        Write(Path("/c/squib/vm/cpu.cfs_period_us"), "100000"),
        Write(Path("/c/squib/vm/cpu.cfs_quota_us"), "150000"),
    )


def test_a_tiny_share_of_a_processor_is_what_the_kernel_takes_at_least() -> None:
    plan = cgroup.plan(Layout((Hierarchy(2, Path("/c"), ("cpu",)),)), "vm", Limits(64, 0.001, 8))
    assert plan.writes[-1].text == "1000 100000"


def test_a_group_is_made_used_and_removed(host: FakeHost) -> None:
    layout = Layout((Hierarchy(1, host.root, ("memory", "pids")),))
    group = host.root / "squib/home/vm"
    for _ in range(2):
        cgroup.create(layout, "squib/home/vm", LIMITS)
    assert (group / "memory.limit_in_bytes").read_text() == SIZE
    assert (group / "pids.max").read_text() == "256"
    assert not (group / "memory.memsw.limit_in_bytes").exists()
    assert cgroup.directories(layout, "squib/home/vm") == (group,)
    for file in group.iterdir():  # a control group's files go with it; plain ones do not
        file.unlink()
    (host.root / "squib/home/other").mkdir()
    for _ in range(2):
        cgroup.remove(layout, "squib/home/vm")
    assert [path.name for path in (host.root / "squib/home").iterdir()] == ["other"]
    cgroup.remove(layout, "squib/home/other")
    assert list(host.root.iterdir()) == []


def test_without_controllers_nothing_is_done() -> None:
    cgroup.create(Layout(), "squib/vm", LIMITS)
    assert cgroup.directories(Layout(), "squib/vm") == ()
    cgroup.remove(Layout(), "squib/vm")


def test_what_cannot_be_written_is_named(host: FakeHost) -> None:
    (host.root / "squib").write_text("not a directory")
    with pytest.raises(HostError, match="squib/vm could not be changed"):
        cgroup.create(Layout((Hierarchy(1, host.root, ("pids",)),)), "squib/vm", LIMITS)


def test_doctor_warns_of_missing_limits() -> None:
    assert cgroup.check(Layout(missing={"memory": "not mounted"})).status is CheckStatus.WARN
    assert cgroup.check(Layout((Hierarchy(2, Path("/c"), cgroup.CONTROLLERS),))).status is CheckStatus.OK
