"""``squib doctor``: check the host, the state directory and its contents.

`check_host` needs no engine, so it can also show why the engine does not start. A check that does not pass carries the
command that repairs it, if there is one; other advice is in its detail.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from squib.core.engine import Engine
from squib.core.lifecycle.boot import FIRST_UID, UID_COUNT
from squib.drivers.registry import AUTO, Drivers, find_drivers
from squib.errors import DependencyMissing, ImageCorrupt, NotFound, Unsupported
from squib.guest.agent import AGENT_BINARY
from squib.host import cgroup, proc
from squib.images.runtimes import RUNTIMES
from squib.images.store import Image, ImageStore
from squib.kernels.catalog import Kernel, KernelStore
from squib.models import Check, CheckStatus, Fix
from squib.paths import Home
from squib.store.repair import damaged_copies

MINIMUM_PYTHON = (3, 11)
DEFAULT_RUNTIME = "base"
_INSTALL = ("apt-get", "install", "--no-install-recommends")
_LOW_SPACE_BYTES = 5 << 30
_MIN_SPACE_BYTES = 1 << 30
_ELF = b"\x7fELF"
_TOOLS = {
    "mmdebstrap": "builds kernels and images",
    "sqfstar": "packs images",
    "mkfs.ext4": "makes disks",
    "zstd": "unpacks kernels",
}
"""Required programs, and what each one does."""
_ROOTLESS_TOOLS = {"newuidmap": "lets this user build images"}
"""Programs that only users other than root need."""
_SYSCTLS = {
    "kernel.unprivileged_userns_clone": "1",
    "kernel.apparmor_restrict_unprivileged_userns": "0",
}
"""Kernel settings that let a user who is not root build images. Not every kernel has them."""


async def check_host(home: Home) -> list[Check]:
    """Check the host and the state directory, in this process.

    Takes about a second: files are hashed, and KVM is tried with a small guest.
    """
    drivers = await find_drivers(home)
    directory = _check_home(home)
    usable = directory.status is not CheckStatus.FAIL
    stored = await asyncio.to_thread(_check_stored, home) if usable else []
    return [
        _check_python(),
        directory,
        _check_space(home),
        _check_driver(drivers),
        *[check for driver in drivers.by_name.values() for check in await driver.checks()],
        *(_check_tool(program, purpose) for program, purpose in (_TOOLS | _rootless_tools()).items()),
        cgroup.check(cgroup.find_layout()),
        _check_users(),
        _check_agent(AGENT_BINARY),
        *stored,
    ]


def check_engine(engine: Engine) -> list[Check]:
    """Check for repaired databases, and for leftovers of removed VMs.

    Only the engine knows which VMs exist. Leftovers are directories and leases.
    """
    known = {record.vm_id for record in engine.store.all_vms()}
    folders = {path.name for path in engine.home.vms.iterdir()} - known
    leases = {lease.owner.id for lease in engine.store.leases()} - known
    checks = _check_damaged_databases(engine.home)
    if not folders and not leases:
        return [*checks, Check(name="leftovers", status=CheckStatus.OK, detail="removed VMs left nothing behind")]
    if folders:
        paths = (str(engine.home.vms / name) for name in sorted(folders))
        detail = f"directories without a VM: {', '.join(sorted(folders))}"
        fix = Fix(argv=("rm", "-r", "--", *paths))
        checks.append(Check(name="leftovers", status=CheckStatus.WARN, detail=detail, fix=fix))
    if leases:
        detail = f"resources of removed VMs: {', '.join(sorted(leases))}. The next engine releases them."
        fix = Fix(argv=("squib", "engine", "stop", "--force"))
        checks.append(Check(name="leftovers", status=CheckStatus.WARN, detail=detail, fix=fix))
    return checks


def _check_damaged_databases(home: Home) -> list[Check]:
    copies = damaged_copies(home.database)
    if not copies:
        return []
    detail = f"the database was damaged and replaced; VMs that it lost are listed as error. Kept: {copies[-1]}"
    fix = Fix(argv=("rm", "--", *map(str, copies)))
    return [Check(name="database", status=CheckStatus.WARN, detail=detail, fix=fix)]


def _check_driver(drivers: Drivers) -> Check:
    try:
        choice = drivers.choose(AUTO)
    except Unsupported as error:
        return Check(name="driver", status=CheckStatus.FAIL, detail=error.message)
    detail = f"new VMs use {choice.driver.name} with {choice.driver.accelerator}: {choice.reason}"
    return Check(name="driver", status=CheckStatus.OK, detail=detail)


def _check_python() -> Check:
    found = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info < MINIMUM_PYTHON:
        wanted = ".".join(map(str, MINIMUM_PYTHON))
        return Check(name="python", status=CheckStatus.FAIL, detail=f"{found}; squib needs {wanted} or newer")
    return Check(name="python", status=CheckStatus.OK, detail=found)


def _check_home(home: Home) -> Check:
    name = "state directory"
    place = _nearest_existing(home.root)
    if not os.access(place, os.W_OK | os.X_OK) or not place.is_dir():
        detail = f"{home.root} is not writable for uid {os.geteuid()}; SQUIB_HOME selects another directory"
        chown = Fix(argv=("chown", "-R", str(os.geteuid()), str(place)), as_root=True)
        return Check(name=name, status=CheckStatus.FAIL, detail=detail, fix=chown if place == home.root else None)
    if place == home.root and place.stat().st_mode & 0o077:
        detail = f"other users can access {home.root}"
        chmod = Fix(argv=("chmod", "700", str(home.root)))
        return Check(name=name, status=CheckStatus.WARN, detail=detail, fix=chmod)
    return Check(name=name, status=CheckStatus.OK, detail=str(home.root))


def _check_space(home: Home) -> Check:
    place = _nearest_existing(home.root)
    free = shutil.disk_usage(place).free
    detail = f"{free / (1 << 30):.1f} GiB free on the disk of {place}"
    if free >= _LOW_SPACE_BYTES:
        return Check(name="space", status=CheckStatus.OK, detail=detail)
    status = CheckStatus.WARN if free >= _MIN_SPACE_BYTES else CheckStatus.FAIL
    return Check(name="space", status=status, detail=f"{detail}; SQUIB_HOME selects a directory on another disk")


def _nearest_existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _rootless_tools() -> dict[str, str]:
    return {} if os.geteuid() == 0 else _ROOTLESS_TOOLS


def _check_tool(program: str, purpose: str) -> Check:
    package = proc.PACKAGE_OF[program]
    try:
        return Check(name=package, status=CheckStatus.OK, detail=f"{proc.find_tool(program)} {purpose}")
    except DependencyMissing:
        detail = f"{program} is not installed; it {purpose}"
        fix = Fix(argv=(*_INSTALL, package), as_root=True)
        return Check(name=package, status=CheckStatus.FAIL, detail=detail, fix=fix)


def _check_users() -> Check:
    """Check that root has uids for VMMs, and that others can build images."""
    if os.geteuid() == 0:
        return check_uid_map(Path("/proc/self/uid_map").read_text())
    values = {name: _sysctl(name) for name in _SYSCTLS}
    wrong = [f"{name}={_SYSCTLS[name]}" for name, value in values.items() if value not in (None, _SYSCTLS[name])]
    if wrong:
        detail = "only root may create user namespaces on this host, so this user cannot build images"
        fix = Fix(argv=("sysctl", "-w", *wrong), as_root=True)
        return Check(name="users", status=CheckStatus.WARN, detail=detail, fix=fix)
    return Check(name="users", status=CheckStatus.OK, detail=f"VMs run as uid {os.geteuid()}, like squib itself")


def check_uid_map(uid_map: str) -> Check:
    """Check that root can give each VMM its own user.

    ``uid_map`` is the text of ``/proc/self/uid_map``.
    """
    last = FIRST_UID + UID_COUNT - 1
    ranges = [tuple(map(int, line.split())) for line in uid_map.splitlines()]
    if any(inside <= FIRST_UID and last < inside + count for inside, _, count in ranges):
        return Check(name="users", status=CheckStatus.OK, detail="each VM runs as its own unprivileged user")
    detail = f"VMs run as uids {FIRST_UID} to {last}, which this user namespace does not have (is this a container?)"
    return Check(name="users", status=CheckStatus.FAIL, detail=detail)


def _sysctl(name: str) -> str | None:
    try:
        return Path("/proc/sys", *name.split(".")).read_text().strip()
    except OSError:
        return None


def _check_agent(binary: Path) -> Check:
    reinstall = Fix(argv=("pip", "install", "--force-reinstall", "--no-deps", "squib"))
    try:
        with binary.open("rb") as file:
            is_elf = file.read(len(_ELF)) == _ELF
    except OSError as error:
        return Check(name="agent", status=CheckStatus.FAIL, detail=f"{binary}: {error.strerror}", fix=reinstall)
    if not is_elf:
        return Check(name="agent", status=CheckStatus.FAIL, detail=f"{binary} is not an ELF program", fix=reinstall)
    return Check(name="agent", status=CheckStatus.OK, detail=str(binary))


def _check_stored(home: Home) -> list[Check]:
    images = ImageStore(home)
    built = {image.name for image in images.list()}
    return [
        _check_digest("kernel", KernelStore(home).verify, build=("squib", "kernel", "build")),
        *(
            _check_digest(f"image {name}", partial(images.verify, name), build=("squib", "image", "build", name))
            for name in RUNTIMES
            if name in built or name == DEFAULT_RUNTIME
        ),
    ]


def _check_digest(name: str, verify: Callable[[], Kernel | Image], *, build: tuple[str, ...]) -> Check:
    try:
        return Check(name=name, status=CheckStatus.OK, detail=f"{verify().digest[:19]}…, verified")
    except NotFound:
        detail = "not built yet; the first VM that needs it waits for the build"
        return Check(name=name, status=CheckStatus.WARN, detail=detail, fix=Fix(argv=build))
    except ImageCorrupt as error:
        return Check(name=name, status=CheckStatus.FAIL, detail=error.message, fix=Fix(argv=(*build, "--rebuild")))
