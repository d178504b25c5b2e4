"""The drivers of this host, and the choice of one for a new VM.

Each VM is stored with the name of its driver.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from squib.drivers.base import Driver, Needs, Problem, lacking, unsupported
from squib.drivers.firecracker.checks import jailer_lacks
from squib.drivers.firecracker.driver import FirecrackerDriver
from squib.drivers.firecracker.programs import FoundPrograms, find_programs
from squib.drivers.qemu.driver import QemuDriver
from squib.errors import Unsupported
from squib.host.jail import probe_jail
from squib.host.probe import probe_kvm
from squib.paths import FirecrackerRelease, Home

AUTO = "auto"
NO_NEEDS = Needs()


@dataclass(frozen=True)
class Choice:
    """The driver of a new VM. ``reason`` says in one line why it was chosen."""

    driver: Driver
    reason: str


@dataclass(frozen=True)
class Drivers:
    """The drivers by name, in the order in which ``auto`` prefers them."""

    by_name: Mapping[str, Driver]

    @classmethod
    def of(cls, *drivers: Driver) -> Drivers:
        """Return a registry of these drivers, the preferred one first."""
        return cls({driver.name: driver for driver in drivers})

    @property
    def default(self) -> Driver:
        """The driver that ``auto`` chooses."""
        return self.choose(AUTO).driver

    def get(self, name: str) -> Driver:
        """Return the driver with this name. Raises `Unsupported`."""
        if name not in self.by_name:
            raise Unsupported(
                f"this host has no driver {name!r}; it has {', '.join(self.by_name)}", hint="squib doctor"
            )
        return self.by_name[name]

    def choose(self, name: str, needs: Needs = NO_NEEDS) -> Choice:
        """Choose the driver of a new VM: the one with this name, or for ``auto`` the first that can run it.

        Raises `Unsupported` if it cannot, with the reason.
        """
        if name != AUTO:
            driver = self.get(name)
            if problem := _problem(driver, needs):
                raise unsupported(name, problem)
            return Choice(driver, "it was asked for by name")
        problems: list[str] = []
        hint = ""
        for driver in self.by_name.values():
            found = _problem(driver, needs)
            if found is None:
                return Choice(driver, "; ".join(problems) or "it is the first choice, and works here")
            problems.append(f"{driver.name} cannot be used: {found.text}")
            hint = found.hint  # of the last driver, which needs the least
        raise Unsupported(f"no driver can run this VM: {'; '.join(problems)}", hint=hint)


def _problem(driver: Driver, needs: Needs) -> Problem | None:
    return lacking(driver.capabilities, needs) or driver.problem(jailer=needs.jailer)


async def find_drivers(home: Home) -> Drivers:
    """Find this host's drivers: Firecracker, and QEMU with KVM if it works, else with TCG.

    Takes about 40 ms.
    """
    installed = FirecrackerRelease(home.firecracker)
    kvm, confinement, programs = await asyncio.gather(probe_kvm(), probe_jail(), find_programs(installed))
    firecracker = FirecrackerDriver(FoundPrograms(programs, installed).now, kvm, jailer_lacks())
    return Drivers.of(firecracker, QemuDriver(kvm, confinement))
