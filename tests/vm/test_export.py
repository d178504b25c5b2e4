"""A snapshot of a real VM that goes to another machine: another state directory, with an engine of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from squib import VM
from squib.host import processes
from squib.host.processes import ProcessIdentity
from squib.paths import Home
from tests.processes import until
from tests.vm.conftest import PATIENCE, end_engine
from tests.vm.test_snapshots import COUNT, READ_COUNT, count, goes_on_counting

pytestmark = pytest.mark.nested


@pytest.fixture
def vm(home: Home) -> Iterator[VM]:
    """A VM that runs and can be saved."""
    with VM() as vm:
        if vm.info.driver != "qemu":
            pytest.skip(f"{vm.info.driver} saves no VMs")
        yield vm


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Home]:
    """Another state directory, without kernels and images."""
    other = Home(tmp_path / "other")
    yield other
    end_engine(other)
    for vm in other.vms.glob("*"):
        processes.kill(ProcessIdentity(vm / "vmm.lock"))


def squib(home: Home, *arguments: str | Path) -> str:
    environment = os.environ | {"SQUIB_HOME": str(home.root)}
    ended = subprocess.run(
        [sys.executable, "-m", "squib", *map(str, arguments)], capture_output=True, text=True, env=environment
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_snapshot_goes_on_another_machine(vm: VM, home: Home, other: Home, tmp_path: Path) -> None:
    vm.spawn(COUNT)
    until(lambda: vm.run("test -s /dev/shm/count").ok, "it does not count", within_s=20 * PATIENCE)
    vm.run("echo saved > /root/file; head -c 3000000 /dev/urandom > /root/data; sync", check=True)
    digest = vm.run("sha256sum /root/data").stdout
    before = count(vm)
    vm.snapshot("moved")
    file = tmp_path / "moved.tar"
    squib(home, "snapshot", "export", "moved", file)
    squib(home, "snapshot", "rm", "moved")
    listed = subprocess.run(["tar", "tvf", file], check=True, capture_output=True, text=True).stdout
    assert "overlay.ext4" in listed and "kernel/vmlinux" in listed
    images = sum(path.stat().st_size for root in (home.images, home.kernels) for path in root.glob("sha256-*/*"))
    assert file.stat().st_size < images + (150 << 20)  # of a disk of 10 GiB
    squib(other, "snapshot", "import", file)
    file.unlink()
    assert [found["name"] for found in json.loads(squib(other, "--json", "snapshot", "ls"))] == ["moved"]
    squib(other, "create", "--snapshot", "moved", "--name", "copy")
    try:
        assert squib(other, "exec", "copy", "cat", "/root/file") == "saved\n"
        assert squib(other, "exec", "copy", "sha256sum", "/root/data") == digest
        first = int(squib(other, "exec", "copy", "--", "sh", "-c", READ_COUNT))
        assert first >= before
        until(
            lambda: int(squib(other, "exec", "copy", "--", "sh", "-c", READ_COUNT)) > first,
            "it stands still", within_s=20 * PATIENCE,
        )  # fmt: skip
        squib(other, "create", "--snapshot", "moved", "--cold", "--name", "booted")
        assert squib(other, "exec", "booted", "cat", "/root/file") == "saved\n"
    finally:
        squib(other, "rm", "--force", "copy", "booted")
    goes_on_counting(vm, before)
    squib(other, "snapshot", "rm", "moved")
    assert [path.name for path in (*other.images.iterdir(), *other.kernels.iterdir())] == ["names", "names"]
