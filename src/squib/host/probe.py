"""Can ``/dev/kvm`` run a stock guest?

That the device opens and even makes VMs is not an answer. Where the host is itself a paravirtual guest (PVM), KVM
interprets guest code at under 1 MIPS and dies at the first SSE2 instruction, and ``qemu -accel kvm`` hangs. So a few
instructions are run in a throw-away VM (`squib.host.kvmguest`), in a process of its own that is killed if it hangs.
"""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from squib.errors import ToolFailed
from squib.host import kvmguest, proc

_DEVICE = Path("/dev/kvm")
_ATTEMPTS = 3
_START_TIMEOUT_S = 10.0  # for an interpreter on a very busy host; the guest itself has kvmguest.LIMIT_S
_SLOW_LOOP_S = 0.020  # 1 µs per turn: an interpreter. A processor takes 10 µs for all of them.


@dataclass(frozen=True)
class KVMProbe:
    """``present``: there is a ``/dev/kvm``. ``usable``: it runs a stock guest. ``reason`` says why or why not."""

    usable: bool
    reason: str
    present: bool


@dataclass(frozen=True)
class Verdict:
    """What one run of the guest shows. ``certain`` is false for what a busy host can cause as well."""

    usable: bool
    reason: str
    certain: bool = True


async def probe_kvm(device: Path = _DEVICE) -> KVMProbe:
    """Look for KVM and run a guest in it: 20 ms, and at most a few seconds on a host that is very busy or broken."""
    if platform.machine() != "x86_64":
        return KVMProbe(False, f"squib's VMs are x86-64, this host is {platform.machine()}", device.exists())
    if not device.exists():
        return KVMProbe(
            False, f"there is no {device}: no hardware virtualization here, or the kvm module is not loaded", False
        )
    if not os.access(device, os.R_OK | os.W_OK):
        return KVMProbe(False, f"no permission to open {device}: add this user to the group kvm", True)
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
    """What a report of the guest means. ``error``: how its process failed, if it did."""
    value: dict[str, str] = {}
    at: dict[str, float] = {}
    for line in report.splitlines():
        name, text, time = line.split()
        value[name] = text
        at[name] = float(time)
    end = value.get("end") or error or "no answer"
    ended = "end" in value  # if not, it was killed for taking too long, which a busy host explains too
    if not value:
        return Verdict(False, f"a guest could not be run: {end}", certain=False)
    if int(value.get("cs", 0)) & 3:
        return Verdict(False, "a guest's kernel would not run in ring 0 (paravirtual KVM)")
    if "sse2" not in value:
        reason = f"a guest stopped at an SSE2 instruction ({end}): KVM interprets guest code (paravirtual KVM)"
        return Verdict(False, reason, certain=ended)
    if "idt" not in value or "resumed" not in value:
        return Verdict(False, f"a guest's exception handler was not called ({end})", certain=ended)
    if end != "HLT":
        return Verdict(False, f"a guest did not come to its end ({end})", certain=ended)
    loop_s = at["looped"] - at["resumed"]
    if loop_s > _SLOW_LOOP_S:
        per_turn_us = loop_s / kvmguest.LOOP_TURNS * 1e6
        return Verdict(False, f"guest code is interpreted ({per_turn_us:.1f} µs per loop turn)", certain=False)
    return Verdict(True, "hardware virtualization works")
