"""The drivers of this host. Each VM is stored with the name of its driver."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from squib.drivers.base import Driver
from squib.drivers.qemu.driver import QemuDriver
from squib.errors import Unsupported
from squib.host.jail import probe_jail
from squib.host.probe import probe_kvm


@dataclass(frozen=True)
class Drivers:
    """The drivers by name. New VMs use ``default``."""

    default: Driver
    by_name: Mapping[str, Driver]

    @classmethod
    def of(cls, default: Driver, *others: Driver) -> Drivers:
        """Return a registry of these drivers."""
        return cls(default, {driver.name: driver for driver in (default, *others)})

    def get(self, name: str) -> Driver:
        """Return the driver with this name. Raises `Unsupported`."""
        if name not in self.by_name:
            raise Unsupported(
                f"this host has no driver {name!r}; it has {', '.join(self.by_name)}", hint="squib doctor"
            )
        return self.by_name[name]


async def find_drivers() -> Drivers:
    """Find this host's drivers: QEMU, with KVM if it works, else with TCG.

    Takes about 40 ms.
    """
    return Drivers.of(QemuDriver(*await asyncio.gather(probe_kvm(), probe_jail())))
