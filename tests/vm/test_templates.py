"""Clones of a template on a real VMM: each has its own identity, memory and disk, and works like a VM that booted."""

import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from squib import VM
from squib.core.snapshots import templates
from squib.paths import Home
from tests.processes import until
from tests.vm.conftest import PATIENCE, SAVED_MEMORY, end_engine

pytestmark = pytest.mark.nested

CLONES = max(4, round(50 / PATIENCE))
IDENTITY = """
cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid /etc/machine-id
hostname
head -c 16 /dev/urandom | od -An -tx1
date +%s.%N
"""


@pytest.fixture
def template(home: Home) -> Path:
    """The only template there is; made by a VM that runs no more."""
    for folder in home.templates.glob("*"):
        (folder / "manifest.json").unlink()
    with VM() as vm:
        until(lambda: len(list(home.templates.glob("*/manifest.json"))) == 1, "there is no template")
        opened = [os.readlink(fd) for fd in Path(f"/proc/{vm.info.pid}/fd").iterdir()]  # noqa: PTH115
        assert [path for path in opened if "template" in path] == []  # the VMM holds none of its files
    [manifest] = home.templates.glob("*/manifest.json")
    return manifest.parent


def is_clone(vm: VM) -> bool:
    """Whether a VM's memory is mapped privately, as only a clone's is."""
    maps = Path(f"/proc/{vm.info.pid}/maps").read_text()
    return re.findall(rf" rw-(.) .*{SAVED_MEMORY}\b", maps) == ["p"]


def identity_of_a_clone(_: int) -> tuple[str, ...]:
    with VM() as vm:
        assert is_clone(vm)
        before = time.time()
        *identity, date = vm.run(IDENTITY, check=True).stdout.split("\n")[:-1]
        assert before - 0.1 < float(date) < time.time() + 0.1
        return tuple(identity)


def test_clones_share_nothing_that_identifies_them(template: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        identities = list(threads.map(identity_of_a_clone, range(CLONES)))
    for values in zip(*identities, strict=True):
        assert len(set(values)) == CLONES, values


def test_a_clone_is_told_a_new_identity_after_each_start(template: Path) -> None:
    with VM() as vm:
        boot_ids = {vm.run("cat /proc/sys/kernel/random/boot_id", check=True).stdout}
        machine_id = vm.run("cat /etc/machine-id", check=True).stdout
        vm.run("echo kept > /root/kept; sync", check=True)
        vm.stop().start()
        assert not is_clone(vm)  # its disk is its own by now
        boot_ids.add(vm.run("cat /proc/sys/kernel/random/boot_id", check=True).stdout)
        assert len(boot_ids) == 2
        assert vm.run("cat /etc/machine-id /root/kept", check=True).stdout == f"{machine_id}kept\n"


def test_what_a_clone_writes_is_its_own(template: Path) -> None:
    memory = (template / "memory").read_bytes()
    with VM() as one, VM() as other:
        assert is_clone(one) and is_clone(other)
        for number, vm in enumerate((one, other)):
            vm.run(f"echo {number} > /root/file; echo {number} > /dev/shm/file; sync", check=True)
        for number, vm in enumerate((one, other)):
            assert vm.run("cat /root/file /dev/shm/file", check=True).stdout == f"{number}\n{number}\n"
    assert (template / "memory").read_bytes() == memory
    with VM() as later:
        assert not later.run("ls /root/file /dev/shm/file").ok


def test_a_cold_vm_is_no_clone(template: Path) -> None:
    with VM(cold=True) as vm:
        assert not is_clone(vm)


def test_a_damaged_template_is_no_error(template: Path, home: Home) -> None:
    """The stamp of its files says that they are whole; only the VMM finds the damage."""
    with (template / "devices").open("r+b") as file:
        file.write(b"no devices")
    manifest = templates.Manifest.model_validate_json((template / "manifest.json").read_bytes())
    stamps = manifest.files | {"devices": templates.Stamp.of(template / "devices")}
    (template / "manifest.json").write_text(manifest.model_copy(update={"files": stamps}).model_dump_json())
    with VM() as vm:
        assert not is_clone(vm)
        until(lambda: len(list(home.templates.glob("*/manifest.json"))) == 1, "it leaves no template")
    with VM() as vm:
        assert is_clone(vm)


def test_a_clone_is_adopted_by_the_next_engine(template: Path, home: Home) -> None:
    with VM() as vm:
        vm.run("echo state > /dev/shm/state", check=True)
        pid = vm.info.pid
        end_engine(home, signal.SIGKILL)
        with VM.from_id(vm.vm_id) as again:
            assert again.info.pid == pid and is_clone(again)
            assert again.run("cat /dev/shm/state", check=True).stdout == "state\n"
            again.pause()
            again.resume()
            assert again.run("echo on", check=True).stdout == "on\n"
