"""Firecracker's checks for ``squib doctor``.

None of them fails: without Firecracker, VMs run on QEMU.
"""

from __future__ import annotations

import os
from pathlib import Path

from squib.drivers.base import Problem
from squib.drivers.firecracker import installed
from squib.drivers.firecracker.programs import Programs
from squib.drivers.firecracker.version import show_version
from squib.host.probe import KVM_DEVICE, KVMProbe, access_fix
from squib.models import Check, CheckStatus, Fix
from squib.paths import FirecrackerRelease

_INSTALL = Fix(argv=("squib", "install", "firecracker"))


def check_all(programs: Programs | Problem, kvm: KVMProbe, *, can_jail: bool) -> list[Check]:
    """Check the programs, and if they work, what they need of this host.

    Where KVM cannot run a guest, there is no warning if Firecracker is missing.
    """
    if isinstance(programs, Problem) and not kvm.usable:
        detail = f"{programs.text}; it needs KVM, which cannot run a guest here"
        return [Check(name="firecracker", status=CheckStatus.OK, detail=detail)]
    found = check_programs(programs)
    if found.status is not CheckStatus.OK:
        return [found]
    return [found, check_kvm(kvm, KVM_DEVICE), check_jailer(can_jail=can_jail)]


def check_programs(programs: Programs | Problem) -> Check:
    """Check that Firecracker and its jailer are there, supported and unchanged."""
    name = "firecracker"
    if isinstance(programs, Problem):
        detail = f"VMs run on QEMU: {programs.text}"
        return Check(name=name, status=CheckStatus.WARN, detail=detail, fix=_INSTALL)
    shown = f"{show_version(programs.version)} at {programs.vmm}"
    release = FirecrackerRelease(programs.vmm.parent)
    if changed := installed.changed_programs(release):
        detail = f"{shown}: changed since it was installed: {', '.join(changed)}"
        return Check(name=name, status=CheckStatus.WARN, detail=detail, fix=_INSTALL)
    return Check(name=name, status=CheckStatus.OK, detail=shown)


def check_kvm(kvm: KVMProbe, device: Path) -> Check:
    """Check that Firecracker can run guests with KVM, which it needs.

    ``device`` is ``/dev/kvm``.
    """
    name = "firecracker kvm"
    if kvm.usable:
        return Check(name=name, status=CheckStatus.OK, detail=kvm.reason)
    detail = f"Firecracker needs KVM, so VMs run on QEMU: {kvm.reason}"
    return Check(name=name, status=CheckStatus.WARN, detail=detail, fix=access_fix(device))


def check_jailer(*, can_jail: bool) -> Check:
    """Check that the engine may use Firecracker's jailer."""
    name = "firecracker jailer"
    if can_jail:
        return Check(name=name, status=CheckStatus.OK, detail="each VM gets its own user, chroot and namespaces")
    wanted = "root" if os.geteuid() else "cgroups (memory, cpu, pids)"
    detail = f"Firecracker's jailer needs {wanted}, so VMs run on QEMU"
    return Check(name=name, status=CheckStatus.WARN, detail=detail)
