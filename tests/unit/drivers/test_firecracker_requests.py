"""The requests that configure a machine, and how Firecracker is started."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from squib.drivers.base import SavedMemory
from squib.drivers.firecracker import plan
from squib.drivers.firecracker.programs import Programs
from squib.drivers.firecracker.requests import configuration, kernel_command_line, load
from squib.host.chroot import SharedFile
from squib.host.jail import Credentials
from squib.paths import FirecrackerPaths
from tests.fakes.machines import machine_spec

SPEC = machine_spec(
    "vm_1.x", kernel=Path("/k/vmlinux"), initramfs=Path("/i.cpio"), base=Path("/b.squashfs"), overlay=Path("/o.ext4")
)
FILES = plan.guest_files(SPEC)
PATHS = FirecrackerPaths(Path("/home/vms/vm_1.x/firecracker"))
CGROUPS = (Path("/sys/fs/cgroup/squib/1/vm_1.x"),)


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    vmm = tmp_path / "firecracker"
    vmm.write_bytes(b"x" * (3 << 20) + b"x")
    return Programs(vmm, tmp_path / "jailer", (1, 16, 1))


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    path = tmp_path / "overlay.ext4"
    with path.open("wb") as file:
        file.truncate(5 << 20)
    return path


def test_a_machine_is_configured_as_its_spec_says() -> None:
    requests = {request.path: request.body for request in configuration(SPEC, FILES, pci=True)}
    assert requests["/machine-config"] == {"vcpu_count": 1, "mem_size_mib": 128, "smt": False}
    assert requests["/boot-source"]["kernel_image_path"] == "/kernel"
    assert requests["/boot-source"]["initrd_path"] == "/initramfs"
    assert requests["/drives/base"]["path_on_host"] == "/disk-base" and requests["/drives/base"]["is_read_only"]
    assert requests["/drives/overlay"]["cache_type"] == "Writeback" and not requests["/drives/overlay"]["is_read_only"]
    assert requests["/vsock"] == {"guest_cid": 3, "uds_path": "/agent.sock"}
    assert {"/entropy", "/balloon", "/metrics"} <= requests.keys()


def test_the_agent_is_told_its_disks_and_how_to_power_off() -> None:
    words = kernel_command_line(SPEC, pci=True).split()
    assert {"squib.disk.base=vda", "squib.disk.overlay=vdb", "squib.poweroff=restart", "reboot=k"} <= {*words}
    assert "pci=off" not in words
    assert "pci=off" in kernel_command_line(SPEC, pci=False).split()


def test_the_users_boot_arguments_come_last() -> None:
    assert kernel_command_line(replace(SPEC, boot_args="debug  x=1"), pci=True).endswith(" debug x=1")


def test_the_jailer_gets_the_vms_user_and_a_pid_namespace_and_limits(programs: Programs, overlay: Path) -> None:
    spec = replace(SPEC, disks=(SPEC.disks[0], replace(SPEC.disks[1], path=overlay)))
    made = plan.chroot_plan(spec, PATHS, programs, Credentials(70001, 70002), CGROUPS)
    before, after = made.argv[: made.argv.index("--")], made.argv[made.argv.index("--") + 1 :]
    values = dict(itertools.pairwise(before))
    assert (values["--uid"], values["--gid"], values["--id"]) == ("70001", "70002", "vm-1-x")
    assert "--new-pid-ns" in before and "no-file=2048" in before and f"fsize={5 << 20}" in before
    assert after == ("--api-sock", "/api.sock", "--log-path", "/log", "--level", "Info", "--enable-pci")
    assert made.root == f"{values['--chroot-base-dir']}/firecracker/vm-1-x/root"
    assert made.cgroups == (str(CGROUPS[0]),)


def test_what_vms_share_is_read_only_in_the_chroot(programs: Programs, overlay: Path) -> None:
    spec = replace(SPEC, disks=(SPEC.disks[0], replace(SPEC.disks[1], path=overlay)))
    files = plan.chroot_plan(spec, PATHS, programs, Credentials(70001, 70001), ()).files
    writable = {file.name for file in files if not file.read_only}
    assert writable == {"disk-overlay", "log", "metrics"}
    assert SharedFile("/k/vmlinux", "kernel", read_only=True) in files
    assert SharedFile("/b.squashfs", "disk-base", read_only=True) in files


def test_the_chroot_has_room_for_a_copy_of_firecracker(programs: Programs) -> None:
    assert plan.chroot_size_mib(programs) == 2 + 4


def test_an_older_firecracker_gets_no_flag_that_it_does_not_know(programs: Programs) -> None:
    old = replace(programs, version=(1, 10, 1))
    assert "--enable-pci" not in plan.bare_plan(SPEC, PATHS, old, CGROUPS).argv
    assert "--enable-pci" in plan.bare_plan(SPEC, PATHS, programs, CGROUPS).argv


def test_without_the_jailer_sockets_are_named_from_the_drivers_directory(programs: Programs) -> None:
    made = plan.bare_plan(SPEC, PATHS, programs, CGROUPS)
    assert made.cwd == str(PATHS.root) and made.mode == "none"
    assert made.argv[made.argv.index("--api-sock") + 1] == "api.sock"
    files = plan.guest_files(replace(SPEC, jailer=False))
    assert (files.kernel, files.disks) == ("kernel", ("disk-base", "disk-overlay"))


def test_a_saved_memory_is_read_only_and_is_all_that_is_loaded(programs: Programs, overlay: Path) -> None:
    saved = SavedMemory(128, Path("/s/memory"), Path("/s/devices"))
    spec = replace(SPEC, memory=saved, disks=(SPEC.disks[0], replace(SPEC.disks[1], path=overlay)))
    files = plan.chroot_plan(spec, PATHS, programs, Credentials(70001, 70001), ()).files
    assert SharedFile("/s/memory", "memory", read_only=True) in files
    assert SharedFile("/s/devices", "devices", read_only=True) in files
    metrics, loaded = load(FILES)
    assert (metrics.path, loaded.path) == ("/metrics", "/snapshot/load")
    assert loaded.body == {
        "snapshot_path": "/devices", "mem_backend": {"backend_type": "File", "backend_path": "/memory"},
        "resume_vm": False,
    }  # fmt: skip
