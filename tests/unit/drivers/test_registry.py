"""Which driver a new VM gets, and why."""

from pathlib import Path

import pytest

from squib.drivers.base import Needs, Problem
from squib.drivers.firecracker.driver import FirecrackerDriver
from squib.drivers.firecracker.programs import Programs
from squib.drivers.qemu.driver import QemuDriver
from squib.drivers.registry import Drivers
from squib.errors import Unsupported
from squib.host.jail import Jail, JailMode
from squib.host.probe import KVMProbe

PROGRAMS = Programs(Path("/opt/fc/firecracker"), Path("/opt/fc/jailer"), (1, 16, 1))
WORKS = KVMProbe(True, "hardware virtualization works", True)
NO_KVM = KVMProbe(False, "guest code is interpreted", True)
NOT_INSTALLED = Problem("Firecracker is not installed", hint="squib install firecracker")


def drivers(programs: Programs | Problem = PROGRAMS, kvm: KVMProbe = WORKS, lacks: str = "") -> Drivers:
    return Drivers.of(FirecrackerDriver(lambda: programs, kvm, lacks), QemuDriver(NO_KVM, Jail(JailMode.NONE)))


def test_auto_is_firecracker_where_all_that_it_needs_is_there() -> None:
    choice = drivers().choose("auto")
    assert choice.driver.name == "firecracker" and "works here" in choice.reason


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (drivers(NOT_INSTALLED), "Firecracker is not installed"),
        (drivers(kvm=NO_KVM), "KVM cannot run a guest here: guest code is interpreted"),
        (drivers(lacks="root"), "its jailer needs root"),
    ],
)
def test_auto_is_qemu_otherwise_and_says_why(found: Drivers, reason: str) -> None:
    choice = found.choose("auto")
    assert choice.driver.name == "qemu" and f"firecracker cannot be used: {reason}" in choice.reason


@pytest.mark.parametrize(
    ("found", "text", "hint"),
    [
        (drivers(NOT_INSTALLED), "Firecracker is not installed", "squib install firecracker"),
        (drivers(kvm=NO_KVM), "KVM cannot run a guest here: guest code is interpreted", "--driver qemu"),
        (drivers(lacks="root"), "its jailer needs root", "--no-jailer"),
    ],
)
def test_a_driver_that_was_asked_for_and_cannot_work_is_an_error_with_the_reason(
    found: Drivers, text: str, hint: str
) -> None:
    with pytest.raises(Unsupported, match="the driver firecracker cannot run this VM") as raised:
        found.choose("firecracker")
    assert text in raised.value.message and hint in raised.value.hint


def test_without_a_jailer_firecracker_needs_no_root() -> None:
    assert drivers(lacks="root").choose("auto", Needs(jailer=False)).driver.name == "firecracker"


def test_auto_is_the_first_driver_that_meets_the_needs_of_the_vm() -> None:
    choice = drivers().choose("auto", Needs(vcpu_count=33))
    assert choice.driver.name == "qemu" and "it supports at most 32 CPUs, not 33" in choice.reason
    assert drivers().choose("auto", Needs(nested=True)).driver.name == "qemu"
    assert drivers().choose("auto", Needs(bzimage=True)).driver.name == "qemu"
    with pytest.raises(Unsupported, match="firecracker cannot run this VM: it does not support nested"):
        drivers().choose("firecracker", Needs(nested=True))


def test_qemu_has_no_jail_to_leave_out() -> None:
    with pytest.raises(Unsupported, match="always run in squib's jail"):
        drivers().choose("qemu", Needs(jailer=False))
    with pytest.raises(Unsupported, match="no driver can run this VM"):
        drivers(NOT_INSTALLED).choose("auto", Needs(jailer=False))


def test_an_unknown_driver_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(Unsupported, match="no driver 'xen'; it has firecracker, qemu"):
        drivers().choose("xen")
