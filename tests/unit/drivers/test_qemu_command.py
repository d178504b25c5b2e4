"""QEMU's command line: what a machine has, and what it has not."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from squib.drivers.base import Disk, FreshMemory, MachineSpec
from squib.drivers.qemu.command import Acceleration, Descriptors, command_line, kernel_command_line

NOWHERE = Path("/never/opened/by/qemu")
DISKS = (Disk("base", NOWHERE, read_only=True), Disk("overlay", NOWHERE, read_only=False))
SPEC = MachineSpec("vm-7k2m", 2, FreshMemory(256), NOWHERE, NOWHERE, DISKS, boot_args="loglevel=7 debug")
FDS = Descriptors(kernel=3, initramfs=4, disks=(5, 6), memory=7, qmp=8, agent=9, console=10)
TCG, KVM = Acceleration(kvm=False), Acceleration(kvm=True)


def line(accel: Acceleration = TCG, spec: MachineSpec = SPEC) -> list[str]:
    return command_line(spec, FDS, accel, program="qemu-system-x86_64")


def values(option: str, argv: list[str]) -> list[str]:
    return [argv[index + 1] for index, text in enumerate(argv) if text == option]


def blockdev(name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(
        node for node in map(json.loads, values("-blockdev", line())) if node["node-name"] == name
    )
    return found


def test_nothing_is_opened_by_path() -> None:
    assert not [text for text in line() if str(NOWHERE) in text]


@pytest.mark.parametrize("fd", FDS.all())
def test_every_descriptor_is_used(fd: int) -> None:
    used = [f"/proc/self/fd/{fd}", f"fd={fd},"]
    assert [text for text in line() if any(part in f"{text}," for part in used)]


def test_the_base_is_read_only_and_the_overlay_gives_space_back() -> None:
    assert values("-add-fd", line()) == ["fd=5,set=1", "fd=6,set=2"]
    base, overlay = blockdev("base"), blockdev("overlay")
    assert base["read-only"] is base["file"]["read-only"] is True
    assert base["file"]["filename"] == "/dev/fdset/1"
    assert "read-only" not in overlay
    assert overlay["discard"] == overlay["file"]["discard"] == "unmap"
    assert overlay["file"]["filename"] == "/dev/fdset/2"


def test_the_agent_finds_its_disks_and_its_port() -> None:
    devices = values("-device", line())
    assert "virtio-blk-pci,drive=base,serial=squib-base,werror=report,rerror=report" in devices
    assert "virtio-blk-pci,drive=overlay,serial=squib-overlay,werror=report,rerror=report" in devices
    assert "virtserialport,chardev=agent,name=squib.agent" in devices


def test_there_is_no_other_device() -> None:
    argv = line()
    assert len(values("-device", argv)) == 4
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(argv)
    assert values("-nic", argv) == ["none"]
    assert values("-display", argv) == ["none"]


def test_the_sandbox_is_on() -> None:
    assert values("-sandbox", line(KVM)) == ["on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]


def test_memory_is_shared_with_its_file_so_that_it_can_become_a_template() -> None:
    argv = line()
    assert values("-object", argv) == ["memory-backend-file,id=mem,size=256M,mem-path=/proc/self/fd/7,share=on"]
    assert values("-m", argv) == ["256M"]
    assert values("-smp", argv) == ["2"]
    assert "memory-backend=mem" in values("-M", argv)[0]
    assert "dump-guest-core=off" in values("-M", argv)[0]


def test_the_accelerator_decides_the_processor() -> None:
    assert values("-accel", line(KVM)) == ["kvm"]
    assert values("-cpu", line(KVM)) == ["host,-svm,-vmx"]
    assert values("-accel", line(TCG)) == ["tcg,thread=multi,tb-size=256"]
    assert values("-cpu", line(TCG)) == ["max,-erms,-la57,-svm"]


def test_only_a_nested_guest_gets_the_extensions_for_running_vms() -> None:
    nested = replace(SPEC, nested=True)
    assert values("-cpu", line(KVM, nested)) == ["host"]
    assert values("-cpu", line(TCG, nested)) == ["max,-erms,-la57,+svm"]


def test_the_users_boot_arguments_come_last() -> None:
    assert values("-append", line())[0].endswith(" loglevel=7 debug")


def test_a_panic_ends_the_machine() -> None:
    for accel in (KVM, TCG):
        assert {"panic=-1", "reboot=t", "console=ttyS0"} <= set(kernel_command_line(accel).split())


def test_what_only_helps_an_emulator_is_left_out_with_kvm() -> None:
    assert "tsc=reliable" in kernel_command_line(TCG)
    assert "tsc=reliable" not in kernel_command_line(KVM)
