"""``doctor``: is this host fit for VMs, and is what squib keeps here in order?

`check_host` needs no engine, so that it can say why none starts. Each failed check carries the command that mends it.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from squib.core.engine import Engine
from squib.core.lifecycle.start import FIRST_UID, UID_COUNT
from squib.drivers.registry import find_drivers
from squib.errors import DependencyMissing, ImageCorrupt, NotFound
from squib.guest.agent import AGENT_BINARY
from squib.host import cgroup, proc
from squib.images.runtimes import RUNTIMES
from squib.images.store import Image, ImageStore
from squib.kernels.catalog import Kernel, KernelStore
from squib.models import Check, CheckStatus
from squib.paths import Home

MINIMUM_PYTHON = (3, 11)
DEFAULT_RUNTIME = "base"
INSTALL = "apt-get install --no-install-recommends"
_LITTLE_SPACE_BYTES = 5 << 30
_NO_SPACE_BYTES = 1 << 30
_ELF = b"\x7fELF"
_TOOLS = {
    "mmdebstrap": "builds kernels and images",
    "sqfstar": "packs images",
    "mkfs.ext4": "makes disks",
    "zstd": "unpacks kernels",
}
"""The programs that are looked for, and what each is for."""
_ROOTLESS_TOOLS = {"newuidmap": "lets this user build images"}
"""Those that only users other than root need."""
_SYSCTLS = {
    "kernel.unprivileged_userns_clone": "1",
    "kernel.apparmor_restrict_unprivileged_userns": "0",
}
"""What must hold, where a kernel has it, for a user who is not root to build images."""


async def check_host(home: Home) -> list[Check]:
    """Look at the host and the state directory, in this process. Takes a second: files are hashed, a guest is tried."""
    drivers = await find_drivers()
    place = _check_home(home)
    usable = place.status is not CheckStatus.FAIL
    stored = await asyncio.to_thread(_check_stored, home) if usable else []
    return [
        _check_python(),
        place,
        _check_space(home),
        *[check for driver in drivers.by_name.values() for check in await driver.checks()],
        *(_check_tool(program, purpose) for program, purpose in (_TOOLS | _rootless_tools()).items()),
        cgroup.check(cgroup.find_layout()),
        _check_users(),
        _check_agent(AGENT_BINARY),
        *stored,
    ]


def check_engine(engine: Engine) -> list[Check]:
    """Look at what only the engine of a state directory knows: what was left behind."""
    known = {record.vm_id for record in engine.store.all_vms()}
    folders = {path.name for path in engine.home.vms.iterdir()} - known
    leases = {lease.owner.id for lease in engine.store.leases()} - known
    if not folders and not leases:
        return [Check(name="leftovers", status=CheckStatus.OK, detail="nothing is left of former VMs")]
    checks = []
    if folders:
        paths = shlex.join(str(engine.home.vms / name) for name in sorted(folders))
        detail = f"directories without a VM: {', '.join(sorted(folders))}"
        checks.append(Check(name="leftovers", status=CheckStatus.WARN, detail=detail, fix=f"rm -r -- {paths}"))
    if leases:
        detail = f"resources of VMs that are gone: {', '.join(sorted(leases))}; the next engine releases them"
        checks.append(Check(name="leftovers", status=CheckStatus.WARN, detail=detail, fix=f"kill {os.getpid()}"))
    return checks


def _check_python() -> Check:
    found = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info < MINIMUM_PYTHON:
        wanted = ".".join(map(str, MINIMUM_PYTHON))
        return Check(name="python", status=CheckStatus.FAIL, detail=f"{found}, needed {wanted}")
    return Check(name="python", status=CheckStatus.OK, detail=found)


def _check_home(home: Home) -> Check:
    name = "state directory"
    place = _existing(home.root)
    if not os.access(place, os.W_OK | os.X_OK) or not place.is_dir():
        return Check(
            name=name,
            status=CheckStatus.FAIL,
            detail=f"{home.root} cannot be written to by uid {os.geteuid()}",
            fix=f"sudo chown -R {os.geteuid()} {place}"
            if place == home.root
            else "export SQUIB_HOME=/a/directory/of/yours",
        )
    if place == home.root and place.stat().st_mode & 0o077:
        detail = f"{home.root} can be read by other users"
        return Check(name=name, status=CheckStatus.WARN, detail=detail, fix=f"chmod 700 {home.root}")
    return Check(name=name, status=CheckStatus.OK, detail=str(home.root))


def _check_space(home: Home) -> Check:
    place = _existing(home.root)
    free = shutil.disk_usage(place).free
    detail = f"{free / (1 << 30):.1f} GiB are free on the disk of {place}"
    if free >= _LITTLE_SPACE_BYTES:
        return Check(name="space", status=CheckStatus.OK, detail=detail)
    status = CheckStatus.WARN if free >= _NO_SPACE_BYTES else CheckStatus.FAIL
    return Check(name="space", status=status, detail=detail, fix="export SQUIB_HOME=/a/directory/on/another/disk")


def _existing(path: Path) -> Path:
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
        return Check(name=package, status=CheckStatus.FAIL, detail=detail, fix=f"{_sudo()}{INSTALL} {package}")


def _check_users() -> Check:
    """Root runs each VMM as a user of its own; others need user namespaces to build images."""
    if os.geteuid() == 0:
        return check_uid_map(Path("/proc/self/uid_map").read_text())
    values = {name: _sysctl(name) for name in _SYSCTLS}
    wrong = [f"{name}={_SYSCTLS[name]}" for name, value in values.items() if value not in (None, _SYSCTLS[name])]
    if wrong:
        detail = "users who are not root may not make user namespaces, so images cannot be built"
        return Check(name="users", status=CheckStatus.WARN, detail=detail, fix=f"sudo sysctl -w {' '.join(wrong)}")
    return Check(name="users", status=CheckStatus.OK, detail=f"VMs run as uid {os.geteuid()}, as squib does")


def check_uid_map(uid_map: str) -> Check:
    """Whether root can give each VMM a user of its own, from the text of ``/proc/self/uid_map``."""
    last = FIRST_UID + UID_COUNT - 1
    ranges = [tuple(map(int, line.split())) for line in uid_map.splitlines()]
    if any(inside <= FIRST_UID and last < inside + count for inside, _, count in ranges):
        return Check(name="users", status=CheckStatus.OK, detail="each VM runs as an unprivileged user of its own")
    detail = f"this user namespace has no uids {FIRST_UID} to {last}, which VMs run as (a container without them?)"
    return Check(name="users", status=CheckStatus.FAIL, detail=detail)


def _sysctl(name: str) -> str | None:
    try:
        return Path("/proc/sys", *name.split(".")).read_text().strip()
    except OSError:
        return None


def _check_agent(binary: Path) -> Check:
    reinstall = "pip install --force-reinstall --no-deps squib"
    try:
        with binary.open("rb") as file:
            whole = file.read(len(_ELF)) == _ELF
    except OSError as error:
        return Check(name="agent", status=CheckStatus.FAIL, detail=f"{binary}: {error.strerror}", fix=reinstall)
    if not whole:
        return Check(name="agent", status=CheckStatus.FAIL, detail=f"{binary} is no program", fix=reinstall)
    return Check(name="agent", status=CheckStatus.OK, detail=str(binary))


def _check_stored(home: Home) -> list[Check]:
    images = ImageStore(home)
    built = {image.name for image in images.list()}
    return [
        _check_digest("kernel", KernelStore(home).verify, build="squib kernel build"),
        *(
            _check_digest(f"image {name}", partial(images.verify, name), build=f"squib image build {name}")
            for name in RUNTIMES
            if name in built or name == DEFAULT_RUNTIME
        ),
    ]


def _check_digest(name: str, verify: Callable[[], Kernel | Image], *, build: str) -> Check:
    try:
        return Check(name=name, status=CheckStatus.OK, detail=f"{verify().digest[:19]}…, every byte as it was stored")
    except NotFound:
        detail = "not there yet; the first VM that needs it waits for it"
        return Check(name=name, status=CheckStatus.WARN, detail=detail, fix=build)
    except ImageCorrupt as error:
        return Check(name=name, status=CheckStatus.FAIL, detail=error.message, fix=f"{build} --rebuild")


def _sudo() -> str:
    return "" if os.geteuid() == 0 else "sudo "
