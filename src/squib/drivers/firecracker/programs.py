"""Find Firecracker's two programs on this host."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from squib.drivers.base import Problem
from squib.drivers.firecracker.installed import recorded_version
from squib.drivers.firecracker.version import Version, check_supported, parse_version, show_version
from squib.errors import DependencyMissing, SquibError
from squib.host import proc
from squib.paths import FirecrackerRelease

_TIMEOUT_S = 10.0
_PCI_SINCE = (1, 13)
_INSTALL = "squib install firecracker"


@dataclass(frozen=True)
class Programs:
    """Firecracker and its jailer, of one version."""

    vmm: Path
    jailer: Path
    version: Version

    @property
    def has_pci(self) -> bool:
        """Whether this Firecracker can put devices on a PCI bus."""
        return self.version >= _PCI_SINCE


async def find_programs(installed: FirecrackerRelease) -> Programs | Problem:
    """Return the programs at ``installed``, else those on the PATH.

    Takes about 5 ms.
    """
    release = FirecrackerRelease(installed.root.resolve())  # once, so that both programs are of one release
    if release.vmm.exists():
        return await _examine(release.vmm, release.jailer)
    vmm, jailer = shutil.which("firecracker"), shutil.which("jailer")
    if vmm is None or jailer is None:
        return Problem("Firecracker is not installed", hint=_INSTALL)
    return await _examine(Path(vmm), Path(jailer))


class FoundPrograms:
    """The programs that an engine has found, until ``squib install`` or ``squib uninstall`` changes them.

    Programs that are installed later are not run to learn their version: the installer has done that.
    """

    def __init__(self, found: Programs | Problem, installed: FirecrackerRelease) -> None:
        self._found = found
        self._installed = installed
        self._root = installed.root.resolve()

    def now(self) -> Programs | Problem:
        """Return the programs that are installed now. Reads files, but runs nothing."""
        release = FirecrackerRelease(self._installed.root.resolve())
        if release.root == self._root:
            return self._found
        version = recorded_version(release)
        if version is None:
            return Problem("Firecracker is not installed", hint=_INSTALL)
        return Programs(release.vmm, release.jailer, version)


async def _examine(vmm: Path, jailer: Path) -> Programs | Problem:
    try:
        versions = (await _version(vmm), await _version(jailer))  # not at once: an error would leave the other running
        check_supported(versions[0])
    except DependencyMissing as error:
        return Problem(error.message, hint=_INSTALL)
    except SquibError as error:
        return Problem(f"{vmm} cannot be used: {error.message}", hint=_INSTALL)
    if versions[0] != versions[1]:
        shown = " and ".join(map(show_version, versions))
        return Problem(f"{vmm} and {jailer} are of different versions, {shown}", hint=_INSTALL)
    return Programs(vmm.resolve(), jailer.resolve(), versions[0])


async def _version(program: Path) -> Version:
    done = await proc.run([str(program), "--version"], timeout_s=_TIMEOUT_S)
    return parse_version(done.stdout.decode(errors="replace"))
