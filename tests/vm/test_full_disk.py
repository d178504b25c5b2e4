"""A disk that is really full while a VM is saved: the error says so, and the VM runs on."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from squib import VM, DiskFull, Snapshots, VMState
from squib.paths import Home
from tests.processes import until
from tests.vm.conftest import PATIENCE
from tests.vm.test_snapshots import COUNT, count, goes_on_counting

SIZE_MIB = 700
LEFT_MIB = 45
"""Less than the memory of a guest takes, and more than what is kept for running VMs: 1/20 of the disk."""
WRITER = """
i=0
while [ $((i+=1)) -lt 300 ]; do
  head -c 50000 /dev/urandom >> /root/written && sync /root/written || touch /dev/shm/failed
done
"""
"""It writes to 15 MiB of blocks that the disk did not have."""


def fill(home: Home) -> Path:
    """Leave `LEFT_MIB` free."""
    ballast = home.root.parent / "ballast"
    free = os.statvfs(home.root)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - (LEFT_MIB << 20))
    return ballast


def fork(vm: VM) -> None:
    try:
        vm.fork(2)
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


VERBS: dict[str, Callable[[VM], object]] = {
    "snapshot": lambda vm: vm.snapshot("half"),
    "suspend": lambda vm: vm.suspend(),
    "fork": fork,
}


@pytest.mark.parametrize("origin", ["boot", "clone"])
def test_a_vm_that_cannot_be_saved_runs_on(small_disk: Callable[[int], Home], origin: str) -> None:
    small = small_disk(SIZE_MIB)
    with VM() as first:
        if first.info.driver != "qemu":
            pytest.skip(f"{first.info.driver} saves no VMs")
        until(lambda: list(small.templates.glob("*/manifest.json")), "there is no template", within_s=30 * PATIENCE)
    with VM(cold=origin == "boot") as vm:
        vm.spawn(COUNT)
        vm.spawn(WRITER)
        until(
            lambda: vm.run("test -s /dev/shm/count -a -s /root/written").ok, "it does not count", within_s=20 * PATIENCE
        )
        vm.run("echo kept > /root/file; sync", check=True)
        for name, verb in VERBS.items():
            ballast = fill(small)
            before = count(vm)
            with pytest.raises(DiskFull, match="no space left on the disk of ") as caught:
                verb(vm)
            assert str(small.root) in caught.value.message and "free space" in caught.value.hint, name
            assert vm.refresh().state is VMState.RUNNING, name
            goes_on_counting(vm, before)
            assert vm.run("cat /root/file").stdout == "kept\n"
            assert not vm.run("test -e /dev/shm/failed").ok, f"{name}: the guest could not write"
            assert [found.name for found in VM.list()] == [vm.name]
            assert (Snapshots().list(), list(small.snapshots.iterdir())) == ([], []), name
            ballast.unlink()
            vm.run(f"echo {name} >> /root/log; sync", check=True)  # its disk can still be written
        vm.suspend().start()
        vm.snapshot("whole")
        vm.run("cat /root/log", check=True)
        with VM(snapshot="whole") as copy:
            assert copy.run("cat /root/log").stdout.split() == list(VERBS)


def test_a_snapshot_that_does_not_fit_is_not_imported(small_disk: Callable[[int], Home], tmp_path: Path) -> None:
    small = small_disk(SIZE_MIB)
    with VM() as vm:
        if vm.info.driver != "qemu":
            pytest.skip(f"{vm.info.driver} saves no VMs")
        vm.snapshot("s1")
        snapshots = Snapshots()
        file = tmp_path / "s1.tar"
        snapshots.export_file("s1", file)
        fill(small)
        with pytest.raises(DiskFull, match="no space left on the disk of "):
            snapshots.import_file(file, name="s2")
        assert [found.name for found in snapshots.list()] == ["s1"]
        assert len(list(small.snapshots.iterdir())) == 1
        with pytest.raises(DiskFull, match="s1 would leave too little free space on the disk of "):
            snapshots.export_file("s1", small.root.parent / "s1.tar")
        assert not (small.root.parent / "s1.tar").exists()
        assert vm.run("echo fine").stdout == "fine\n"
