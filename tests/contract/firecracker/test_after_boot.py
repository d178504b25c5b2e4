"""What the stub does while its guest runs, and when that ends."""

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from squib.guest.agent import AgentClient, Identity
from tests.contract.firecracker.vmm import BOOT, DISK, START, VSOCK, Vmm, connector, output_of, running
from tests.fakes.firecracker.install import Stub, requests

AFTER = "The requested operation is not supported after starting the microVM."
SYNC = b"SQUIB-SYNC 1 " + b"a" * 32 + b"\n"


@contextlib.contextmanager
def booted(stub: Stub, *arguments: str) -> Iterator[Vmm]:
    """A stub with a guest."""
    version = json.loads((stub.folder / "stub.settings.json").read_text()).get("version", "1.16.1")
    with running(stub.firecracker, version, stub.folder.parent, *arguments) as vmm:
        vmm.ok("PUT", "/drives/disk", DISK)
        vmm.boot()
        yield vmm


def test_the_agent_answers_through_vsock(stub: Stub) -> None:
    with booted(stub) as vmm, vmm.vsock(1024) as link:
        assert link.makefile("rb").readline() == b"OK 1073741824\n"
        link.sendall(SYNC)
        assert link.recv(100) == b"SQUIB-OK 1 " + b"a" * 32 + b"\n"
        assert vmm.call("GET", "/")[1]["state"] == "Running"


@pytest.mark.anyio
async def test_a_client_of_the_agent_runs_commands_and_powers_off(stub: Stub) -> None:
    with booted(stub) as vmm:
        client = AgentClient(connector(vmm))
        await client.connect(timeout_s=30)
        await client.setup(Identity("vm-1", "h", "0" * 32), env={"A": "1"})
        assert await output_of(client, "echo", "a", "b") == b"a b\n"
        await client.poweroff(grace_s=1)
        assert vmm.process.wait(30) == 0
        await client.close()
        assert vmm.process.stdout
        assert vmm.process.stdout.read().endswith(b"Firecracker exiting successfully. exit_code=0\n")


def test_a_vsock_can_be_dead_after_a_resume(stub: Stub) -> None:
    stub.configure(gates_vsock=True)
    with booted(stub) as vmm, vmm.vsock(1024) as before:
        reader = before.makefile("rb")
        assert reader.readline().startswith(b"OK ")
        vmm.ok("PATCH", "/vm", {"state": "Paused"})
        vmm.ok("PATCH", "/vm", {"state": "Resumed"})
        before.sendall(SYNC)
        with vmm.vsock(1024) as after:
            for link in (before, after):
                link.settimeout(0.05)
                with pytest.raises(TimeoutError):
                    link.recv(1)


@pytest.mark.parametrize("port", [1023, 1025, 0])
def test_a_port_without_a_listener_closes_the_connection(stub: Stub, port: int) -> None:
    with booted(stub) as vmm, vmm.vsock(port) as link:
        assert link.recv(100) == b""


def test_drives_cannot_be_added_to_a_guest_before_1_16_or_without_pci(stub: Stub) -> None:
    with booted(stub) as vmm:
        assert vmm.error("PUT", "/drives/new", DISK | {"drive_id": "new"}) == "PCI is not enabled"
    (stub.folder.parent / "api.sock").unlink()
    (stub.folder.parent / "vsock").unlink()
    stub.configure(version="1.15.0")
    with booted(stub) as vmm:
        assert vmm.error("PUT", "/drives/new", DISK | {"drive_id": "new"}) == AFTER


def test_a_balloon_is_inflated_and_has_statistics(stub: Stub) -> None:
    with running(stub.firecracker, "1.16.1", stub.folder.parent) as vmm:
        vmm.ok("PUT", "/balloon", {"amount_mib": 0, "deflate_on_oom": True, "stats_polling_interval_s": 1})
        vmm.boot()
        vmm.ok("PATCH", "/balloon", {"amount_mib": 64})
        vmm.ok("PATCH", "/balloon/statistics", {"stats_polling_interval_s": 5})
        assert vmm.call("GET", "/balloon")[1]["amount_mib"] == 64
        assert vmm.call("GET", "/balloon/statistics")[1]["target_mib"] == 64
        assert "too large" in vmm.error("PATCH", "/balloon", {"amount_mib": 129})
        assert "after boot" in vmm.error("PATCH", "/balloon/statistics", {"stats_polling_interval_s": 0})


def test_metrics_are_written_when_asked_for(stub: Stub) -> None:
    with booted(stub, "--metrics-path", "metrics") as vmm:
        vmm.ok("PUT", "/actions", {"action_type": "FlushMetrics"})
        assert "vmm" in json.loads((vmm.folder / "metrics").read_text())


@pytest.mark.parametrize(("guest", "status", "last"), [("panic", 0, b"Kernel panic"), ("crash", 1, b"exit_code=1")])
def test_a_guest_that_ends_by_itself_ends_the_vmm(stub: Stub, guest: str, status: int, last: bytes) -> None:
    stub.configure(guest=guest)
    with booted(stub) as vmm:
        assert vmm.process.wait(30) == status
        assert vmm.process.stdout
        assert last in vmm.process.stdout.read()


@pytest.mark.anyio
@pytest.mark.parametrize("missing", ["reboot=k", "squib.poweroff=restart"])
async def test_a_power_off_ends_the_vmm_only_as_a_restart_through_the_keyboard(stub: Stub, missing: str) -> None:
    with running(stub.firecracker, "1.16.1", stub.folder.parent) as vmm:
        vmm.ok("PUT", "/boot-source", BOOT | {"boot_args": BOOT["boot_args"].replace(missing, "")})
        vmm.ok("PUT", "/vsock", VSOCK)
        vmm.ok("PUT", "/actions", START)
        client = AgentClient(connector(vmm))
        await client.connect(timeout_s=30)
        await client.poweroff(grace_s=1)
        await client.close()
        assert vmm.process
        with pytest.raises(subprocess.TimeoutExpired):
            vmm.process.wait(0.2)


def test_a_guest_without_an_agent_closes_and_one_that_hangs_says_nothing(stub: Stub) -> None:
    stub.configure(guest="no-agent")
    with booted(stub) as vmm, vmm.vsock(1024) as link:
        assert link.recv(1) == b""
    (stub.folder.parent / "api.sock").unlink()
    (stub.folder.parent / "vsock").unlink()
    stub.configure(guest="hang")
    with booted(stub) as vmm, vmm.vsock(1024) as link:
        link.sendall(SYNC)
        assert link.makefile("rb").readline().startswith(b"OK ")
        link.settimeout(0.05)
        with pytest.raises(TimeoutError):
            link.recv(1)


def test_the_console_goes_to_standard_output_or_to_a_file(stub: Stub) -> None:
    with running(stub.firecracker, "1.16.1", stub.folder.parent) as vmm:
        vmm.ok("PUT", "/serial", {"serial_out_path": "console"})
        vmm.boot()
        with vmm.vsock(1024) as link:
            assert link.recv(3) == b"OK "
        assert (vmm.folder / "console").read_bytes().startswith(b"[    0.000000] Linux version")


def test_all_requests_are_recorded_if_asked_for(stub: Stub) -> None:
    stub.configure(record=True)
    with booted(stub) as vmm:
        vmm.call("PUT", "/vsock", b"{")
        seen = requests(vmm.folder / "api.sock")
    assert [entry["path"] for entry in seen] == ["/drives/disk", "/boot-source", "/vsock", "/actions", "/vsock"]
    assert seen[0] == {"method": "PUT", "path": "/drives/disk", "body": DISK}
    assert seen[-1]["body"] == "{"


def test_it_does_not_outlive_its_time(stub: Stub) -> None:
    stub.configure(lifetime_s=1)
    begun = time.monotonic()
    with running(stub.firecracker, "1.16.1", stub.folder.parent) as vmm:
        assert vmm.process.wait(30) == -signal.SIGALRM
    assert time.monotonic() - begun < 20
