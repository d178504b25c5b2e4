"""The stub misbehaves as its settings say: at any call, before or after it takes effect."""

import http.client
import signal
import socket
import subprocess
from typing import Any

import pytest

from tests.contract.firecracker.vmm import BOOT, DISK, START, VSOCK, Vmm, running, wait_for_api
from tests.fakes.firecracker.install import Stub
from tests.fakes.firecracker.schema import OPERATIONS

BODIES: dict[str, Any] = {
    "PUT /boot-source": BOOT,
    "PUT /drives/disk": DISK,
    "PATCH /drives/disk": {"drive_id": "disk"},
    "PUT /vsock": VSOCK,
    "PUT /machine-config": {"vcpu_count": 1, "mem_size_mib": 64},
    "PATCH /machine-config": {"mem_size_mib": 64},
    "PUT /entropy": {},
    "PUT /balloon": {"amount_mib": 1, "deflate_on_oom": True, "stats_polling_interval_s": 1},
    "PATCH /balloon": {"amount_mib": 2},
    "PATCH /balloon/statistics": {"stats_polling_interval_s": 2},
    "PUT /logger": {},
    "PUT /metrics": {"metrics_path": "metrics"},
    "PUT /serial": {},
    "PUT /actions": START,
    "PATCH /vm": {"state": "Paused"},
    "PUT /snapshot/create": {"snapshot_path": "devices", "mem_file_path": "memory"},
    "PUT /snapshot/load": {
        "snapshot_path": "devices",
        "mem_backend": {"backend_type": "File", "backend_path": "memory"},
    },
}
CALLS = [f"{operation.method} {operation.path.replace('{drive_id}', 'disk')}" for operation in OPERATIONS]


@pytest.fixture
def vmm(stub: Stub) -> Any:
    with running(stub.firecracker, "1.16.1", stub.folder.parent) as started:
        yield started


def prepare(vmm: Vmm, call: str) -> None:
    """Bring the VMM into the state in which a call is allowed."""
    operation = next(operation for operation in OPERATIONS if CALLS[OPERATIONS.index(operation)] == call)
    if operation.path.startswith("/balloon"):
        vmm.ok("PUT", "/balloon", BODIES["PUT /balloon"])
    if operation.path.startswith("/drives"):
        vmm.ok("PUT", "/drives/disk", DISK)
    if operation.phase == "after":
        vmm.boot()
        if operation.path == "/snapshot/create":
            vmm.ok("PATCH", "/vm", {"state": "Paused"})
    elif call == "PUT /actions":
        vmm.ok("PUT", "/boot-source", BOOT)


def perform(vmm: Vmm, call: str) -> tuple[int, Any]:
    method, _, path = call.partition(" ")
    return vmm.call(method, path, BODIES.get(call))


@pytest.mark.parametrize("call", CALLS)
def test_each_call_can_be_refused_or_answered_with_an_error_or_end_the_vmm(stub: Stub, vmm: Vmm, call: str) -> None:
    prepare(vmm, call)
    stub.fail(call, "refuse", times=1)
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        perform(vmm, call)
    stub.recover()
    stub.fail(call, "answer", message="not today", skip=1)
    assert perform(vmm, call) == (400, {"fault_message": "not today"})
    stub.recover()
    stub.fail(call, "die", when="after", status=7)
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        perform(vmm, call)
    assert vmm.process
    assert vmm.process.wait(30) == 7


@pytest.mark.parametrize("call", ["GET /", "PUT /vsock", "PUT /actions", "PATCH /vm"])
def test_a_call_can_hang(stub: Stub, vmm: Vmm, call: str) -> None:
    prepare(vmm, call)
    stub.fail(call, "hang")
    vmm.timeout(0.05)
    with pytest.raises(TimeoutError):
        perform(vmm, call)


def test_after_means_that_the_call_took_effect(stub: Stub, vmm: Vmm) -> None:
    stub.fail("PUT /machine-config", "answer", when="before", message="no", times=1)
    assert perform(vmm, "PUT /machine-config")[0] == 400
    assert vmm.call("GET", "/machine-config")[1]["mem_size_mib"] == 128
    stub.recover()
    stub.fail("PUT /machine-config", "answer", when="after", message="no")
    assert perform(vmm, "PUT /machine-config")[0] == 400
    assert vmm.call("GET", "/machine-config")[1]["mem_size_mib"] == 64


def test_actions_and_states_are_told_apart(stub: Stub, vmm: Vmm) -> None:
    stub.fail("PUT /actions FlushMetrics", "die", status=7)
    stub.fail("PATCH /vm Resumed", "answer", message="stays paused")
    vmm.boot()
    vmm.ok("PATCH", "/vm", {"state": "Paused"})
    assert vmm.error("PATCH", "/vm", {"state": "Resumed"}) == "stays paused"
    assert vmm.call("GET", "/")[1]["state"] == "Paused"


def test_a_number_of_calls_can_fail_after_a_number_that_do_not(stub: Stub, vmm: Vmm) -> None:
    stub.fail("GET /version", "answer", message="no", skip=1, times=2)
    assert [vmm.call("GET", "/version")[0] for _ in range(4)] == [200, 400, 400, 200]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGSEGV, 150)])
def test_it_can_end_by_a_signal(stub: Stub, vmm: Vmm, number: int, status: int) -> None:
    stub.fail("GET /", "die", signal=number)
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        vmm.call("GET", "/")
    assert vmm.process
    assert vmm.process.wait(30) == status


def test_connections_to_the_guest_can_fail(stub: Stub, vmm: Vmm) -> None:
    vmm.boot()
    stub.fail("vsock", "refuse", times=2)
    for _ in range(2):
        with vmm.vsock(1024) as link:
            assert link.recv(1) == b""
    with vmm.vsock(1024) as link:
        assert link.recv(3) == b"OK "
    stub.recover()
    stub.fail("vsock", "answer", message="NO")
    with vmm.vsock(1024) as link:
        assert link.makefile("rb").read() == b"NO\n"
    stub.recover()
    stub.fail("vsock", "refuse", when="after", skip=1)
    with vmm.vsock(1024) as link:
        assert link.makefile("rb").readline().startswith(b"OK ")
    stub.recover()
    stub.fail("vsock", "hang", skip=4)
    with vmm.vsock(1024) as link:
        link.settimeout(0.05)
        with pytest.raises(TimeoutError):
            link.recv(1)
    stub.recover()
    stub.fail("vsock", "die", status=7)
    with vmm.vsock(1024) as link:
        assert link.recv(1) == b""
    assert vmm.process
    assert vmm.process.wait(30) == 7


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_launch_can_fail(stub: Stub, when: str) -> None:
    argv = [stub.firecracker, "--api-sock", "api.sock"]
    stub.fail("launch", "die", when=when, status=9)
    assert subprocess.run(argv, stdout=subprocess.DEVNULL, check=False).returncode == 9
    (stub.folder.parent / "api.sock").unlink(missing_ok=True)
    stub.recover()
    stub.fail("launch", "refuse", when=when, message="no KVM")
    ended = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (ended.returncode, "no KVM" in ended.stdout) == (1, True)


def test_the_launch_can_hang(stub: Stub) -> None:
    stub.fail("launch", "hang", when="after")
    argv = [stub.firecracker, "--api-sock", "api.sock"]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as process:
        wait_for_api(stub.folder.parent / "api.sock")
        with socket.socket(socket.AF_UNIX) as link:
            link.connect("api.sock")
            link.sendall(b"GET / HTTP/1.1\r\n\r\n")
            link.settimeout(0.05)
            with pytest.raises(TimeoutError):
                link.recv(1)
        process.kill()
