"""Firecracker's jailer fails, hangs or is killed at any of its steps: an error with the reason, and nothing is left.

Firecracker and its jailer are stubs (`tests.fakes.firecracker`), but the chroot, the user and the cgroup are real.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from squib.errors import BootFailed
from squib.host import cgroup, chroot
from tests.contract.drivers.implementations import Subject, agent_of, subject
from tests.fakes.firecracker.install import Stub
from tests.fakes.firecracker.jailer import STEPS

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(
        os.geteuid() != 0 or cgroup.find_layout().missing != {}, reason="the jailer needs root, cgroups"
    ),
]
FAULTS = {
    "refuse": ("refuse", {"message": "no \x1b[1mluck"}, "jailer exited with status 1.*luck"),
    "killed": ("die", {"signal": 9}, "jailer was killed by SIGKILL"),
    "hang": ("hang", {}, "jailer did not start the VMM within 1 s"),
}


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Subject]:
    async with subject("jailed stub", tmp_path) as made:
        yield made


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("step", [step for step in STEPS if step != "exec"])
async def test_a_jailer_that_fails_at_any_step_is_a_failed_boot(
    machine: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, fault: str, when: str
) -> None:
    stub = Stub(tmp_path / "files")
    do, details, text = FAULTS[fault]
    stub.fail(f"jailer {step}", do, when=when, **details)
    with monkeypatch.context() as changed, pytest.raises(BootFailed, match=f"(?s){text}") as raised:
        if fault == "hang":
            changed.setattr(chroot, "TIMEOUT_S", 1.0)
        await machine.launch()
    assert "\x1b" not in raised.value.message + raised.value.detail
    assert (machine.processes(), machine.sockets()) == ([], [])
    assert machine.mounts() == []
    stub.recover()
    vmm = await machine.launch()
    async with agent_of(vmm):
        pass
    await vmm.kill()


async def test_a_launch_that_is_cancelled_at_any_moment_leaves_nothing(machine: Subject) -> None:
    for delay_ms in range(0, 200, 10):
        launching = asyncio.create_task(machine.launch())
        await asyncio.wait({launching}, timeout=delay_ms / 1000)
        launching.cancel()
        await asyncio.wait({launching})
        if not launching.cancelled():
            await launching.result().kill()
        assert (machine.processes(), machine.sockets(), machine.mounts()) == ([], [], [])
