"""What a guest that has taken over its VMM can do: nothing on the host. `docs/security.md` refers to these tests.

`tests.fakes.escape` is started exactly as QEMU is and tries everything; QEMU itself is looked at while it runs a guest.
Each runs as root and as an ordinary user (rootless), under the accelerator that this host has.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from squib.images.overlay import OverlayStore
from squib.paths import Home
from tests.fakes import prison
from tests.vm.test_qemu_driver import BootFiles, boot_files

__all__ = ["boot_files"]  # a fixture

ROOTLESS_UID = 0x7700_0003
ROOT = Path(__file__).parents[2]
NO_CAPABILITY = "0" * 16

FILES = {
    "open the password file": "ENOENT",
    "open a program": "ENOENT",
    "open process 1": "ENOENT",
    "open itself in /proc": "ENOENT",
    "open a descriptor in /proc": "ENOENT",
    "open a secret of the state directory": "ENOENT",
    "open a file above the root": "ENOENT",
    "open /dev/null": "ENOENT",
    "open /dev/kvm": "ENOENT",
    "open the disk": "ENOENT",
    "open sysfs": "ENOENT",
    "create a file": "EROFS",
    "create a directory": "EROFS",
    "create a link": "EROFS",
    "change the mode of the root": "EROFS",
    "execute a shell": "ENOENT",
    "leave the root": "EPERM",
    "open a file by its handle": "EPERM",
}
NETWORK = dict.fromkeys(
    (
        "connect to 127.0.0.1",
        "connect to ::1",
        "connect to another host",
        "send a datagram",
        "connect to an abstract socket",
        "connect to a socket by its path",
        "open a raw socket",
        "open a packet socket",
        "open a socket to the hypervisor",
        "open a socket to the kernel's cryptography",
        "set up io_uring",
        "read a keyring",
    ),
    "EPERM",
)
PROCESSES = dict.fromkeys(
    (
        "signal another process",
        "signal all processes",
        "signal the parent's group",
        "open another process",
        "trace another process",
        "change the limits of another process",
    ),
    "ESRCH",
)
PRIVILEGES = dict.fromkeys(
    (
        "become root",
        "become another user",
        "become another group",
        "get groups",
        "get capabilities",
        "mount",
        "bind",
        "make the root writable",
        "unmount",
        "make a user namespace",
        "make a user namespace by clone",
        "make a user namespace and mount",
        "make a mount namespace",
        "make a device",
        "change the host name",
        "restart the host",
        "load a program into the kernel",
    ),
    "EPERM",
)
STATE = {
    "list the root": [],
    "the working directory": "/",
    "descriptors of directories": [],
    "parent": 0,
    "own pid": 1,
    "groups": [],
    "no new privileges": 1,
    "capabilities in the bounding set": [],
}
ROOTLESS = dict.fromkeys(("become root", "become another user", "become another group"), "EINVAL")
"""In a user namespace in which only this user exists, the numbers of others have no meaning."""


def run(user: str, *arguments: str) -> dict[str, Any]:
    """What `tests.fakes.prison` prints, run as ``root`` or ``rootless``."""
    if user == "root" and os.geteuid() != 0:
        pytest.skip("needs root")
    other = {"user": ROOTLESS_UID, "group": ROOTLESS_UID, "extra_groups": []} if os.geteuid() == 0 else {}
    switch: dict[str, Any] = other if user == "rootless" else {}
    packages = [path for path in sys.path if path.endswith("site-packages")]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src"), *packages])}
    program = sys.executable if not switch else prison.INTERPRETER
    argv = [program, str(ROOT / "tests/fakes/prison.py"), *arguments]
    done = subprocess.run(argv, env=env, cwd="/", capture_output=True, text=True, timeout=120, check=False, **switch)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def as_seen_from_outside(found: dict[str, Any], *, uid: int) -> None:
    """What must hold of any VMM: one user, no capability, no way to get one, a filter on each thread."""
    fields = found["status"]
    assert set(fields["Uid"]) == set(fields["Gid"]) == {str(uid)}
    assert found["capabilities of all threads"] == [NO_CAPABILITY]
    assert fields["NoNewPrivs"] == ["1"]
    assert found["seccomp of all threads"] == ["2"]
    assert found["holders"] is True


def vmm_uid(user: str) -> int:
    return prison.VMM.uid if user == "root" else ROOTLESS_UID if os.geteuid() == 0 else os.geteuid()


def is_confined(found: dict[str, Any], user: str) -> None:
    """What must hold where the host allows namespaces."""
    assert found["mode"] == ("root" if user == "root" else "user namespace")
    assert found["shared namespaces"] == (["user"] if user == "root" else [])
    assert found["network devices"] == ["lo"]
    assert found["root"] == []


@pytest.mark.parametrize("user", ["root", "rootless"])
def test_a_vmm_that_was_taken_over_reaches_no_file_no_network_no_process_and_no_privilege(user: str) -> None:
    found = run(user, "escape", "best")
    expected = STATE | FILES | NETWORK | PROCESSES | PRIVILEGES | (ROOTLESS if user == "rootless" else {})
    report = found["report"]
    assert report.pop("make a device") in ("EPERM", "EROFS")
    del expected["make a device"]
    assert report == expected
    assert found["victim lives"]
    assert found["descriptors"] == found["expected descriptors"]
    assert "usr" in found["root before"]  # what the seal has taken away
    as_seen_from_outside(found, uid=vmm_uid(user))
    is_confined(found, user)


@pytest.mark.parametrize("user", ["root", "rootless"])
def test_without_namespaces_a_vmm_has_no_network_and_no_privilege(user: str) -> None:
    """Mode ``none``: files that its user may read, and (rootless) the processes of its user, are within reach."""
    refused = dict.fromkeys((*NETWORK, "become root", "get groups", "get capabilities", "mount", "bind"), "EPERM")
    refused |= dict.fromkeys(("change the host name", "restart the host", "open a file by its handle"), "EPERM")
    found = run(user, "escape", "none", *refused, "open the password file")
    report = found["report"]
    assert {name: report[name] for name in refused} == refused
    assert report["open the password file"] == "done"
    assert report["no new privileges"] == 1
    assert report["descriptors of directories"] == []
    assert found["descriptors"] == found["expected descriptors"]
    if user == "root":
        assert report["capabilities in the bounding set"] == []
        as_seen_from_outside(found, uid=vmm_uid(user))


@pytest.fixture
def boot_folder(boot_files: BootFiles) -> Iterator[Path]:
    """The files of a VM, in a directory that any user may use."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for kind in ("kernel", "initramfs", "base"):
            shutil.copyfile(getattr(boot_files, kind), folder / kind)
            (folder / kind).chmod(0o644)
        asyncio.run(OverlayStore(Home(boot_files.home.root)).create(folder / "overlay", 256))
        yield folder


@pytest.mark.parametrize("user", ["root", "rootless"])
def test_qemu_runs_a_guest_with_an_empty_root_and_without_privileges(user: str, boot_folder: Path) -> None:
    if user == "rootless" and os.geteuid() == 0:
        for path in (boot_folder, boot_folder / "overlay"):
            os.chown(path, ROOTLESS_UID, ROOTLESS_UID)
    found = run(user, "boot", str(boot_folder))
    assert found["said"], "the guest does not answer"
    as_seen_from_outside(found, uid=vmm_uid(user))
    is_confined(found, user)
    own = {
        str(boot_folder / name)
        for name in ("kernel", "initramfs", "base", "overlay", "vm/vmm.lock", "vm/qemu/output.pipe")
    }
    files = [target for target in found["open"] if target.startswith("/") and not target.startswith("/memfd:")]
    # /dev/kvm is shown as /, because the seal has detached its mount. T1 shows that no directory is open.
    devices = {"/dev/null"} | ({"/"} if found["accelerator"] == "kvm" else set())
    assert {*files} == own | devices
    rest = [target for target in found["open"] if target not in files and not target.startswith("socket:")]
    others = {target.partition("[")[0] for target in rest}
    kvm = {"anon_inode:kvm-vm", "anon_inode:kvm-vcpu:0", "anon_inode:kvm-vcpu-stats:0"}
    assert others <= {"/memfd:squib-memory (deleted)", "anon_inode:"} | kvm
