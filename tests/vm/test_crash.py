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
from tests.vm.conftest import engine_pids, resources

ROUNDS = 20
SEED = int(os.environ.get("SQUIB_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
PROGRAM = """
import sys
from squib import VM, SquibError
while True:
    try:
        vm = VM()
        vm.start()
        vm.run("true")
        vm.stop()
        vm.start()
        vm.delete()
        vm.close()
    except SquibError as error:
        print(type(error).__name__, flush=True)
"""
USABLE = {VMState.CREATED, VMState.RUNNING, VMState.STOPPED, VMState.ERROR}


def test_kill_9_of_the_engine_at_random_moments(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    VM.list()
    moments = random.Random(SEED)
    program = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.DEVNULL)
    states: dict[VMState, int] = {}
    try:
        for _ in range(ROUNDS):
            time.sleep(moments.uniform(0.05, 2.5))
            for pid in engine_pids(home):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            os.kill(program.pid, signal.SIGSTOP)
            try:
                check_all(home, states)
            finally:
                os.kill(program.pid, signal.SIGCONT)
    finally:
        program.kill()
        program.wait()
    for info in VM.list():
        VM.from_id(info.vm_id).delete()
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
    assert (left.vms, left.processes, left.directories, left.leases, left.cgroups, left.sockets) == ([], [], [], [], [], [])
