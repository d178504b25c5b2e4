"""A running guest, on the stub and on a real Firecracker: what may still be asked, and what happens to the guest."""

import asyncio
import os
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from squib.guest.agent import AGENT_BINARY, AgentClient
from squib.host.probe import probe_kvm
from squib.images.overlay import OverlayStore
from squib.images.store import ImageStore
from squib.kernels.catalog import KernelStore
from squib.kernels.initramfs import InitramfsStore
from squib.paths import Home
from tests.contract.firecracker.vmm import BOOT, BOOT_TIMEOUT_S, DISK, START, VSOCK, Vmm, binary, connector, running

pytestmark = pytest.mark.anyio

AFTER = "The requested operation is not supported after starting the microVM."
GATES_VSOCK = ("1.16.0", "1.16.1")
"""Versions in which a bare pause and resume ends all traffic from the host through vsock. Fixed in later sources."""
BALLOON = {"amount_mib": 0, "deflate_on_oom": True, "stats_polling_interval_s": 0}
DECIDED_BY_THE_BOOT: list[tuple[str, str, dict[str, Any]]] = [
    ("PUT", "/actions", START),
    ("PUT", "/boot-source", BOOT),
    ("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 128}),
    ("PATCH", "/machine-config", {"vcpu_count": 1}),
    ("PUT", "/vsock", VSOCK),
    ("PUT", "/entropy", {}),
    ("PUT", "/balloon", BALLOON),
    ("PUT", "/logger", {}),
    ("PUT", "/metrics", {"metrics_path": "metrics"}),
]


@pytest.fixture(params=["stub-1.16.1", "stub-1.10.1", pytest.param("real", marks=pytest.mark.vm)])
async def guest(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Vmm]:
    """A VMM whose guest boots, with a balloon, and without a root disk of its own."""
    monkeypatch.chdir(tmp_path)
    path, version = binary(request.param, tmp_path / "bin")
    disks: list[dict[str, Any]] = [DISK]
    boot: dict[str, Any] = BOOT
    pci = ("--enable-pci",) if tuple(map(int, version.split(".")[:2])) >= (1, 13) else ()
    if request.param == "real":
        if not (kvm := await probe_kvm()).usable:
            pytest.skip(f"KVM cannot run a guest here: {kvm.reason}")
        boot, disks = await _real_files(tmp_path, pci=bool(pci))
    with running(path, version, tmp_path, "--metrics-path", "metrics", *pci) as vmm:
        vmm.ok("PUT", "/boot-source", boot)
        for disk in disks:
            vmm.ok("PUT", f"/drives/{disk['drive_id']}", disk)
        vmm.ok("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 256})
        vmm.ok("PUT", "/vsock", VSOCK)
        vmm.ok("PUT", "/balloon", BALLOON)
        vmm.ok("PUT", "/actions", START)
        yield vmm


async def _real_files(folder: Path, *, pci: bool) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the boot source and the disks of a guest with squib's agent."""
    home = Home.from_environment()
    kernel, image = await KernelStore(home).ensure(), await ImageStore(home).ensure("base")
    initramfs = await InitramfsStore(home).ensure(kernel, AGENT_BINARY)
    await OverlayStore(home).create(folder / "overlay", 256)
    (folder / "disk").write_bytes(bytes(4096))
    words = [BOOT["boot_args"], "quiet", "squib.disk.base=vda", "squib.disk.overlay=vdb", *([] if pci else ["pci=off"])]
    boot = {"kernel_image_path": str(kernel.path), "initrd_path": str(initramfs), "boot_args": " ".join(words)}
    base = DISK | {"drive_id": "base", "path_on_host": str(image.path), "is_read_only": True}
    return boot, [base, DISK | {"drive_id": "overlay", "path_on_host": str(folder / "overlay")}, DISK]


async def connected(vmm: Vmm) -> AgentClient:
    """Wait for the agent."""
    client = AgentClient(connector(vmm))
    await client.connect(timeout_s=BOOT_TIMEOUT_S)
    return client


async def ended(process: "subprocess.Popen[bytes] | None") -> tuple[int, str]:
    """Wait for the end of a VMM; return its status and what it has printed."""
    assert process
    output, _ = await asyncio.to_thread(process.communicate, timeout=60)
    return process.returncode, output.decode(errors="replace")


async def test_a_running_guest_can_be_asked_and_changed(guest: Vmm) -> None:
    client = await connected(guest)
    for method, path, body in DECIDED_BY_THE_BOOT:
        assert (path, guest.error(method, path, body)) == (path, AFTER)
    if guest.release >= (1, 14):
        assert guest.error("PUT", "/serial", {}) == AFTER
    assert guest.call("GET", "/")[1]["state"] == "Running"
    assert guest.call("GET", "/version") == (200, {"firecracker_version": guest.version})
    assert guest.call("GET", "/machine-config")[1]["mem_size_mib"] == 256
    assert guest.call("GET", "/vm/config")[1]["vsock"] == VSOCK
    _check_new_drives(guest)
    _check_drives(guest)
    _check_balloon(guest)
    guest.ok("PUT", "/actions", {"action_type": "FlushMetrics"})
    assert (guest.folder / "metrics").stat().st_size > 0
    with guest.vsock(1023) as link:
        assert await asyncio.to_thread(link.recv, 1) == b""
    await client.poweroff(grace_s=5)
    await client.close()
    status, output = await ended(guest.process)
    assert status == 0
    assert "squib-agent: power off" in output
    assert output.endswith("Firecracker exiting successfully. exit_code=0\n")


def _check_new_drives(vmm: Vmm) -> None:
    new = DISK | {"drive_id": "new"}
    if vmm.release < (1, 16):
        assert vmm.error("PUT", "/drives/new", new) == AFTER
        return
    vmm.ok("PUT", "/drives/new", new)
    assert vmm.error("PUT", "/drives/new", new) == "Device ID in use"


def _check_drives(vmm: Vmm) -> None:
    failed = "Drive config error: Unable to patch the block device: "
    message = vmm.error("PATCH", "/drives/disk", {"drive_id": "disk", "path_on_host": "none"})
    assert message.startswith(failed)
    assert "No such file or directory (os error 2)" in message
    assert vmm.error("PATCH", "/drives/none", {"drive_id": "none", "path_on_host": "disk"}).startswith(failed)
    (vmm.folder / "other").write_bytes(bytes(8192))
    vmm.ok("PATCH", "/drives/disk", {"drive_id": "disk", "path_on_host": "other"})


def _check_balloon(vmm: Vmm) -> None:
    status, answer = vmm.call("PATCH", "/balloon", {"amount_mib": 16})
    if status != 204:  # squib's kernel loads no driver for it
        assert "Device not activated yet" in answer["fault_message"]
        return
    assert vmm.call("GET", "/balloon")[1]["amount_mib"] == 16
    for path, body in (("/balloon", {"amount_mib": 1 << 20}), ("/balloon/statistics", {"stats_polling_interval_s": 1})):
        message = vmm.error("PATCH", path, body)
        assert message.startswith("Balloon update error: " if vmm.release >= (1, 13) else "Balloon config error: ")
    assert vmm.error("GET", "/balloon/statistics").startswith(
        "Internal VMM error: " if vmm.release >= (1, 13) else "Balloon config error: "
    )


async def test_a_paused_guest_answers_nothing_until_it_is_resumed(guest: Vmm, request: pytest.FixtureRequest) -> None:
    client = await connected(guest)
    await client.close()
    guest.ok("PATCH", "/vm", {"state": "Paused"})
    guest.ok("PATCH", "/vm", {"state": "Paused"})
    assert guest.call("GET", "/")[1]["state"] == "Paused"
    with guest.vsock(1024) as link:
        link.settimeout(0.3)
        with pytest.raises(TimeoutError):
            link.recv(1)
        guest.ok("PATCH", "/vm", {"state": "Resumed"})
        guest.ok("PATCH", "/vm", {"state": "Resumed"})
        assert guest.call("GET", "/")[1]["state"] == "Running"
        if request.node.callspec.params["guest"] == "real" and guest.version in GATES_VSOCK:
            link.settimeout(5)
            with pytest.raises(TimeoutError):
                link.recv(1)
            return
        link.settimeout(60)
        assert link.recv(3, socket.MSG_WAITALL) == b"OK "


async def test_ports_of_connections_count_up(guest: Vmm) -> None:
    client = await connected(guest)
    await client.close()
    ports = []
    for _ in range(2):
        with guest.vsock(1024) as link:
            ports.append(int(link.makefile("rb").readline().removeprefix(b"OK ")))
    assert ports[1] == ports[0] + 1
    assert ports[0] >= 1 << 30


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="only x86 has this keyboard")
async def test_ctrl_alt_del_restarts_the_guest_which_ends_the_vmm(guest: Vmm) -> None:
    client = await connected(guest)
    await client.close()
    guest.ok("PUT", "/actions", {"action_type": "SendCtrlAltDel"})
    status, output = await ended(guest.process)
    assert status == 0
    assert "squib-agent: power off" not in output
