"""Which VMM this host gets."""

from __future__ import annotations

from squib.drivers.base import Driver
from squib.drivers.qemu.driver import QemuDriver
from squib.host.probe import probe_kvm


async def select_driver() -> Driver:
    """QEMU, with KVM where that can run a guest and with its own translator elsewhere. Takes about 20 ms."""
    return QemuDriver(await probe_kvm())
