"""Find out whether ``/dev/kvm`` can run a stock guest.

It is not enough that the device opens, or that a VM can be created. On a host that is itself a paravirtual guest (PVM),
KVM interprets guest code at less than 1 MIPS and fails at the first SSE2 instruction, and ``qemu -accel kvm`` hangs. So
the probe runs a few instructions in a temporary VM (`squib.host.kvmguest`), in a process that is killed if it hangs.
"""

from __future__ import annotations

import os
import platform
import pwd
import sys
from dataclasses import dataclass
from pathlib import Path

from squib.errors import ToolFailed
from squib.host import kvmguest, proc
from squib.models import Fix

KVM_DEVICE = Path("/dev/kvm")
_MODULES = Path("/sys/module")
_ATTEMPTS = 3
_START_TIMEOUT_S = 10.0  # for starting an interpreter on a very busy host; kvmguest.LIMIT_S limits the guest itself
# The whole loop takes at least 0.4 s if it is interpreted, and 0.1 ms on a CPU. On an emulated host with nested
# virtualization it takes up to 50 ms if the machine is busy: each exit from the guest is slow there.
_SLOW_LOOP_S = 0.100


@dataclass(frozen=True)
class KVMProbe:
    """Whether ``/dev/kvm`` is ``present``, and ``usable`` for a stock guest.

    ``reason`` explains the result.
    """

    usable: bool
    reason: str
    present: bool


@dataclass(frozen=True)
class Verdict:
    """The result of one run of the guest.

    ``certain`` is false if a busy host could also explain the result.
    """

    usable: bool
    reason: str
    certain: bool = True


def host_cpu() -> str:
    """Return the model and the features of this host's CPU, as Linux names them."""
    wanted = ("model name", "flags", "Features", "CPU part")
    lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.partition("\t")[0].strip() in wanted)


@dataclass(frozen=True)
class NestingProbe:
    """Whether the host's KVM lets guests run VMs.

    If not, ``reason`` says why, and ``command`` enables it, if a command can.
    """

    usable: bool
    reason: str = ""
    command: str = ""


def probe_nesting(sys_module: Path = _MODULES) -> NestingProbe:
    """Read the parameter ``nested`` of the host's KVM module."""
    for module in ("kvm_amd", "kvm_intel"):
        try:
            value = (sys_module / module / "parameters" / "nested").read_text().strip()
        except OSError:
            continue
        if value in ("1", "Y"):
            return NestingProbe(True)
        enable = f"modprobe -r {module} && modprobe {module} nested=1   (as root, while no VM runs)"
        return NestingProbe(False, f"the host's module {module} has nested={value}", enable)
    return NestingProbe(False, f"neither kvm_amd nor kvm_intel shows a parameter nested in {sys_module}")


async def probe_kvm(device: Path = KVM_DEVICE) -> KVMProbe:
    """Look for KVM and run a test guest in it.

    Takes 20 ms; a few seconds on a very busy or broken host.
    """
    if platform.machine() != "x86_64":
        return KVMProbe(False, f"squib's VMs are x86-64, and this host is {platform.machine()}", device.exists())
    if not device.exists():
        return KVMProbe(
            False, f"no {device}: the host has no hardware virtualization, or the kvm module is not loaded", False
        )
    if not os.access(device, os.R_OK | os.W_OK):
        return KVMProbe(False, f"no permission to open {device}: this user is not in the group kvm", True)
    verdict = Verdict(False, "not tried")
    for _ in range(_ATTEMPTS):
        verdict = await _run_guest()
        if verdict.certain:
            break
    return KVMProbe(verdict.usable, verdict.reason, True)


async def _run_guest() -> Verdict:
    output = os.memfd_create("squib-kvm-probe", os.MFD_CLOEXEC)
    error = ""
    try:
        argv = (sys.executable, "-I", "-S", kvmguest.__file__)
        await proc.run(argv, stdout=output, timeout_s=_START_TIMEOUT_S)
    except ToolFailed as failure:
        error = failure.detail.rpartition("\n")[2] or failure.message
    finally:
        report = os.pread(output, 4096, 0).decode()
        os.close(output)
    return judge(report, error)


def judge(report: str, error: str = "") -> Verdict:
    """Judge the report of a guest.

    ``error`` says how its process failed; it is empty if it did not.
    """
    value: dict[str, str] = {}
    at: dict[str, float] = {}
    for line in report.splitlines():
        name, text, time = line.split()
        value[name] = text
        at[name] = float(time)
    end = value.get("end") or error or "no answer"
    ended = "end" in value  # otherwise it was killed for taking too long, which a busy host can cause too
    if not value:
        return Verdict(False, f"the test guest did not run: {end}", certain=False)
    if int(value.get("cs", 0)) & 3:
        return Verdict(False, "a guest's kernel does not run in ring 0 (paravirtual KVM)")
    if "sse2" not in value:
        reason = f"the test guest stopped at an SSE2 instruction ({end}): KVM interprets guest code (paravirtual KVM)"
        return Verdict(False, reason, certain=ended)
    if "idt" not in value or "resumed" not in value:
        return Verdict(False, f"the test guest's exception handler was not called ({end})", certain=ended)
    if end != "HLT":
        return Verdict(False, f"the test guest did not run to its end ({end})", certain=ended)
    loop_s = at["looped"] - at["resumed"]
    if loop_s > _SLOW_LOOP_S:
        per_turn_us = loop_s / kvmguest.LOOP_TURNS * 1e6
        return Verdict(False, f"guest code is interpreted ({per_turn_us:.1f} µs per loop turn)", certain=False)
    return Verdict(True, "hardware virtualization works")


def access_fix(device: Path) -> Fix | None:
    """Return the command that lets this user open ``device``, if that is what is missing."""
    if not device.exists() or os.access(device, os.R_OK | os.W_OK):
        return None
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = str(os.geteuid())
    return Fix(argv=("usermod", "-aG", "kvm", user), as_root=True)
