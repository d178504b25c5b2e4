"""Which VMM this host gets."""

from __future__ import annotations

import asyncio

from squib.drivers.base import Driver
from squib.drivers.qemu.driver import QemuDriver
from squib.host.jail import probe_jail
from squib.host.probe import probe_kvm


async def select_driver() -> Driver:
    """QEMU, with KVM where that can run a guest and with its own translator elsewhere. Takes about 40 ms."""
    return QemuDriver(*await asyncio.gather(probe_kvm(), probe_jail()))
