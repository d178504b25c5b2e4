"""Firecracker's checks for ``squib doctor``.

None of them fails: without Firecracker, VMs run on QEMU.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from squib.drivers.base import Problem
from squib.drivers.firecracker import installed
from squib.drivers.firecracker.programs import Programs
from squib.drivers.firecracker.version import show_version
from squib.host import cgroup
from squib.host.probe import KVM_DEVICE, KVMProbe, access_fix
from squib.models import Check, CheckStatus, Fix
from squib.paths import FirecrackerRelease

_CAPABILITIES = {"CAP_CHOWN": 0, "CAP_SETGID": 6, "CAP_SETUID": 7, "CAP_SYS_ADMIN": 21, "CAP_MKNOD": 27}
"""What the jailer needs of root, by the numbers in capabilities(7). A container's root may have less."""
_INSTALL = Fix(argv=("squib", "install", "firecracker"))


def check_all(programs: Programs | Problem, kvm: KVMProbe, jailer_lacks: str) -> list[Check]:
    """Check the programs, and if they work, what they need of this host.

    ``jailer_lacks`` is what `jailer_lacks` has returned. Where KVM cannot run a guest, there is no warning if
    Firecracker is missing.
    """
    if isinstance(programs, Problem) and not kvm.usable:
        detail = f"{programs.text}; it needs KVM, which cannot run a guest here"
        return [Check(name="firecracker", status=CheckStatus.OK, detail=detail)]
    found = check_programs(programs)
    if found.status is not CheckStatus.OK:
        return [found]
    return [found, check_kvm(kvm, KVM_DEVICE), check_jailer(jailer_lacks)]


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


def jailer_lacks(status: Path = Path("/proc/self/status")) -> str:
    """Return what the jailer needs and this engine does not have, or nothing.

    ``status`` describes the engine's process, as in proc(5).
    """
    if os.geteuid() != 0:
        return "root"
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status.read_text(), re.MULTILINE)
    effective = int(found[1], 16) if found else 0
    if missing := [name for name, number in _CAPABILITIES.items() if not effective & 1 << number]:
        return f"root with {', '.join(missing)}"
    return "cgroups (memory, cpu, pids)" if cgroup.find_layout().missing else ""


def check_jailer(lacks: str) -> Check:
    """Check that the engine may use Firecracker's jailer."""
    name = "firecracker jailer"
    if not lacks:
        return Check(name=name, status=CheckStatus.OK, detail="each VM gets its own user, chroot and namespaces")
    detail = f"Firecracker's jailer needs {lacks}, so VMs run on QEMU"
    return Check(name=name, status=CheckStatus.WARN, detail=detail)
