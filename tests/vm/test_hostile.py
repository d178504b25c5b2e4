"""Guests whose root attacks the host through its devices."""

import contextlib
import signal
import time
from pathlib import Path

import pytest

from bench.hostile import build_program
from squib import VM
from squib.errors import AgentLost, AgentProtocolError, AgentTimeout
from squib.paths import Home
from tests.vm.conftest import end_engine

_COMPLAINT = b"Unexpected port id"


def cpu_s(pid: int) -> float:
    """The CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_blocks for path in folder.iterdir()) * 512


def until_it_used(pid: int, seconds: float) -> None:
    """Wait until a VMM has worked for some time, whatever else the host does."""
    end, deadline = cpu_s(pid) + seconds, time.monotonic() + 120
    while cpu_s(pid) < end:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_guest_that_makes_qemu_print_errors_fills_no_disk(vm: VM, home: Home) -> None:
    """Nor does it while no engine runs, and QEMU waits for nobody. The next engine ends it as any other VM."""
    folder, pid = home.vm(vm.vm_id).qemu.root, vm.info.pid
    assert pid
    log = home.vm(vm.vm_id).qemu.vmm_log
    vm.files.write("/run/hostile", build_program(), mode=0o755)
    vm.spawn(["/run/hostile", "stderr"])
    deadline = time.monotonic() + 60
    while not (log.exists() and _COMPLAINT in log.read_bytes()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    until_it_used(pid, 2)
    assert disk_bytes(folder) < 512 * 1024
    end_engine(home, signal.SIGKILL)
    until_it_used(pid, 2)
    assert disk_bytes(folder) < 512 * 1024
    assert vm.refresh().pid == pid
    until_it_used(pid, 1)
    assert disk_bytes(folder) < 512 * 1024


@pytest.mark.parametrize("attack", ["frames", "header"])
def test_a_guest_that_floods_its_port_fails_its_own_requests_and_can_be_stopped(vm: VM, attack: str) -> None:
    vm.files.write("/run/hostile", build_program(), mode=0o755)
    vm.spawn(["/run/hostile", attack])
    deadline = time.monotonic() + 60
    with pytest.raises(AgentProtocolError, match="violated HTTP/2"):
        while time.monotonic() < deadline:
            with contextlib.suppress(AgentTimeout, AgentLost):
                vm.processes()
    vm.stop(timeout=2)
    assert vm.status == "stopped"
