"""What confines a VMM while it runs a guest, whichever driver it is of. `docs/security.md` refers to these tests."""

import os
from pathlib import Path

import pytest

from squib import VM
from squib.core.engine import cgroup_parent
from squib.host import cgroup
from squib.paths import Home

pytestmark = [
    pytest.mark.nested,
    pytest.mark.skipif(os.geteuid() != 0, reason="a VMM has a user of its own only if the engine is root"),
]

NO_CAPABILITY = 0
GIB = 1 << 30


@pytest.fixture
def vmm(shared_vm: VM) -> Path:
    """The VMM's directory in /proc."""
    pid = shared_vm.refresh().pid
    assert pid is not None
    return Path(f"/proc/{pid}")


def fields(status: Path) -> dict[str, list[str]]:
    lines = (line.partition(":") for line in status.read_text().splitlines())
    return {name: value.split() for name, _, value in lines}


def test_it_has_a_user_of_its_own_and_no_capability(vmm: Path) -> None:
    for thread in (vmm / "task").iterdir():
        found = fields(thread / "status")
        users = {int(number) for name in ("Uid", "Gid") for number in found[name]}
        assert users == {vmm.stat().st_uid} and min(users) >= 0x7000_0000
        assert {int(found[name][0], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {NO_CAPABILITY}
        assert found["NoNewPrivs"] == ["1"]  # so the bounding set has no effect


def test_every_thread_has_a_seccomp_filter(vmm: Path) -> None:
    modes = {thread.name: fields(thread / "status")["Seccomp"] for thread in (vmm / "task").iterdir()}
    assert len(modes) >= 2
    assert set(map(tuple, modes.values())) == {("2",)}


@pytest.mark.parametrize("kind", ["mnt", "pid", "net", "ipc", "uts"])
def test_it_has_namespaces_of_its_own(vmm: Path, kind: str) -> None:
    assert (vmm / "ns" / kind).stat().st_ino != Path(f"/proc/self/ns/{kind}").stat().st_ino


def test_its_network_namespace_is_empty(vmm: Path) -> None:
    lines = (vmm / "net" / "dev").read_text().splitlines()[2:]
    assert [line.partition(":")[0].strip() for line in lines] == ["lo"]


def test_it_sees_no_file_of_the_host_but_its_own_and_can_write_only_to_its_disk(vmm: Path) -> None:
    names = {path.name for path in (vmm / "root").iterdir()}
    assert names.isdisjoint({"etc", "usr", "proc", "sys", "root", "home", "var"})
    assert (vmm / "root").stat().st_dev != Path("/").stat().st_dev
    shared = {name for name in names if (vmm / "root" / name).is_file() and (vmm / "root" / name).stat().st_uid == 0}
    assert {name for name in shared if as_vmm_can_write(vmm, name)} == set()


def as_vmm_can_write(vmm: Path, name: str) -> bool:
    """Whether the VMM could open this file of its root for writing."""
    uid = vmm.stat().st_uid
    root = os.open(vmm / "root", os.O_PATH)
    child = os.fork()
    if child == 0:
        try:
            os.fchdir(root)
            os.chroot(".")
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            os.close(os.open("/" + name, os.O_WRONLY))
        except OSError:
            os._exit(1)
        os._exit(0)
    os.close(root)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_what_it_has_open_of_the_cache_is_open_for_reading_only(vmm: Path, home: Home) -> None:
    cached = {(path.stat().st_dev, path.stat().st_ino) for path in home.cache.rglob("*") if path.is_file()}
    for fd in (vmm / "fd").iterdir():
        found = fd.stat()
        if (found.st_dev, found.st_ino) in cached:
            flags = int(fields(vmm / "fdinfo" / fd.name)["flags"][0], 8)
            assert flags & os.O_ACCMODE == os.O_RDONLY


def test_its_cgroup_limits_memory_processors_and_processes(vmm: Path, shared_vm: VM, home: Home) -> None:
    layout = cgroup.find_layout()
    assert layout.missing == {}
    found: dict[str, str] = {}
    for folder in cgroup.directories(layout, f"{cgroup_parent(home)}/{shared_vm.vm_id}"):
        assert int(vmm.name) in cgroup.members(folder)
        found |= {path.name: path.read_text().split()[0] for path in folder.iterdir() if path.name in LIMITS}
    assert int(found.get("memory.max") or found["memory.limit_in_bytes"]) < 2 * GIB
    assert int(found.get("cpu.max") or found["cpu.cfs_quota_us"]) > 0
    assert int(found["pids.max"]) < 1000


LIMITS = {"memory.max", "memory.limit_in_bytes", "cpu.max", "cpu.cfs_quota_us", "pids.max"}
