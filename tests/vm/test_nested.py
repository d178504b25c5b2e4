"""A nested guest has a KVM that runs guest code; other guests have none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from squib import VM, Unsupported
from squib.host import kvmguest
from squib.host.probe import judge
from squib.paths import Home

DEVICES = "/dev/kvm /dev/net/tun /dev/vhost-vsock"


@pytest.fixture(scope="module")
def nested_vm(home: Home) -> Iterator[VM]:
    try:
        vm = VM(nested=True, mem_size_mib=256)
    except Unsupported as error:
        pytest.skip(error.message)
    with vm:
        yield vm


def test_its_kvm_runs_guest_code(nested_vm: VM) -> None:
    nested_vm.files.upload(kvmguest.__file__, "/tmp/kvmguest.py")
    result = nested_vm.run(["python3", "-I", "-S", "/tmp/kvmguest.py"])
    verdict = judge(result.stdout, result.stderr)
    assert verdict.usable, f"{verdict.reason}\n{result.stdout}"


def test_every_user_may_open_its_devices(nested_vm: VM) -> None:
    opened = nested_vm.run(f"for device in {DEVICES}; do : <> $device || exit; done", user="nobody")
    assert (opened.exit_code, opened.stderr) == (0, "")


def test_vmms_find_the_hierarchy_of_cgroups(nested_vm: VM) -> None:
    controllers = Path("/sys/fs/cgroup/cgroup.controllers")
    assert {"cpu", "memory", "pids"} <= set(nested_vm.run(["cat", str(controllers)]).output.split())


def test_other_guests_can_run_no_vms(shared_vm: VM) -> None:
    assert shared_vm.run(f"ls {DEVICES}").stdout == ""
    flags = set(shared_vm.run("grep -m1 ^flags /proc/cpuinfo").output.split())
    assert "sse2" in flags and not flags & {"svm", "vmx"}
