"""`kill -9` of the engine at random moments: the next command works, every VM is usable or removable, nothing leaks."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from squib import VM, SquibError, VMState
from squib.paths import Home
from tests.vm.conftest import PATIENCE, SEED, end_engine, engine_pids, resources

ROUNDS = max(2, round(20 / PATIENCE))
PROGRAM = """
from squib import VM
while True:
    vm = VM().start()
    vm.run("sleep 1")
    vm.stop()
    vm.start()
    vm.run("sleep 1")
    vm.delete()
"""
USABLE = {VMState.CREATED, VMState.RUNNING, VMState.STOPPED, VMState.ERROR}


@pytest.mark.nested
def test_kill_9_of_the_engine_at_random_moments(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    moments = random.Random(SEED)
    states: dict[VMState, int] = {}
    for _ in range(ROUNDS):
        VM.list()  # an engine runs
        program = subprocess.Popen([sys.executable, "-c", PROGRAM])
        try:
            time.sleep(moments.uniform(0.3, 7) * PATIENCE)
            for pid in engine_pids(home):
                os.kill(pid, signal.SIGKILL)
        finally:
            program.kill()
            program.wait()
        end_engine(home, signal.SIGKILL)  # waits for the end
        check_all(home, states)
    with capsys.disabled():
        print(f"\n  seed {SEED}: after {ROUNDS} kills, VMs were found {states}", end=" ")


def check_all(home: Home, states: dict[VMState, int]) -> None:
    """With a new engine: everything there is belongs to a VM that is usable, and every VM can be used or removed."""
    infos = VM.list()
    found = resources(home)
    assert found.vms == sorted(info.vm_id for info in infos) == found.directories
    running = [info for info in infos if info.state is VMState.RUNNING]
    assert len(found.processes) == len(found.cgroups_of(running)) == len(running)
    for info in infos:
        states[info.state] = states.get(info.state, 0) + 1
        assert info.state in USABLE
        vm = VM.from_id(info.vm_id)
        with contextlib.suppress(SquibError):
            if info.state is not VMState.RUNNING:
                vm.start()
        assert vm.refresh().state is VMState.RUNNING
        assert vm.run(["echo", "alive"]).output == "alive\n"
        vm.delete()
        vm.close()
    left = resources(home)
    assert (left.vms, left.processes, left.directories, left.leases, left.cgroups, left.sockets) == (
        [],
        [],
        [],
        [],
        [],
        [],
    )
