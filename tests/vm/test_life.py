"""The life of a real VM: start, stop, delete, and what it survives."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from squib import VM, AgentUnreachable, NameTaken, NotFound, Unsupported, VMConfig, VMState, WrongState
from squib.paths import Home
from tests.vm.conftest import PATIENCE, end_engine, wait_for_state


@pytest.mark.nested
def test_the_states_of_a_vm(home: Home) -> None:
    vm = VM(VMConfig(name="life"), mem_size_mib=160)
    try:
        assert vm.status is VMState.CREATED
        with pytest.raises(WrongState, match="created") as refused:
            vm.run("true")
        assert refused.value.hint == "squib start life"
        assert vm.start() is vm
        assert vm.status is VMState.RUNNING
        pid = vm.info.pid
        assert vm.start().info.pid == pid
        assert vm.stop().status is VMState.STOPPED
        assert vm.info.reason == "stopped"
        assert not Path(f"/proc/{pid}").exists()
    finally:
        vm.delete()
    with pytest.raises(NotFound):
        vm.refresh()
    vm.delete()
    vm.close()


def test_another_process_finds_the_vm(vm: VM) -> None:
    code = f"from squib import VM; print(VM.from_id({vm.vm_id!r}).run('hostname').output)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == vm.name
    assert [info.vm_id for info in VM.list()] == [vm.vm_id]


def test_what_was_written_just_before_a_stop_is_there_afterwards(vm: VM) -> None:
    for number in range(10):
        vm.run(f"echo {number} > /root/last && echo {number} >> /var/log/all", check=True)
        vm.stop(timeout=10)
        assert vm.info.reason == "stopped"
        vm.start()
        assert vm.run("cat /root/last", check=True).stdout == f"{number}\n"
    assert vm.run("cat /var/log/all").stdout == "".join(f"{number}\n" for number in range(10))


def test_a_stop_ends_processes_that_ignore_sigterm(vm: VM) -> None:
    vm.run("trap '' TERM; (while :; do sleep 1; done) > /dev/null 2>&1 & touch /root/here", check=True)
    vm.stop(timeout=10)
    assert vm.info.reason == "stopped"
    assert vm.start().run("ls /root").stdout == "here\n"


def test_the_disk_of_one_vm_is_not_that_of_another(vm: VM) -> None:
    vm.run("echo mine > /etc/mine", check=True)
    with VM() as other:
        assert not other.run("cat /etc/mine").ok
        machine_ids = {machine.run("cat /etc/machine-id").stdout for machine in (vm, other)}
        assert len(machine_ids) == 2


@pytest.mark.nested
def test_a_vmm_that_is_killed_is_noticed_within_a_second(vm: VM) -> None:
    vm.run("echo kept > /root/kept; sync", check=True)
    assert vm.info.pid
    os.kill(vm.info.pid, signal.SIGKILL)
    assert wait_for_state(vm, VMState.ERROR, VMState.STOPPED, within_s=5) < PATIENCE
    assert "SIGKILL" in vm.info.reason
    with pytest.raises(WrongState, match="SIGKILL"):
        vm.run("true")
    assert vm.start().run("cat /root/kept").stdout == "kept\n"


@pytest.mark.nested
def test_a_guest_that_powers_itself_off_is_stopped(vm: VM) -> None:
    """As root in a guest would: through the kernel's own switch."""
    with contextlib.suppress(AgentUnreachable):  # the command ends with the guest
        vm.run("sync; echo o > /proc/sysrq-trigger", timeout=5)
    wait_for_state(vm, VMState.STOPPED, within_s=5)
    assert "powered off" in vm.info.reason
    assert vm.start().status is VMState.RUNNING


@pytest.mark.nested
def test_a_guest_that_panics_is_an_error_with_its_words(vm: VM) -> None:
    with contextlib.suppress(AgentUnreachable):
        vm.run("echo c > /proc/sysrq-trigger", timeout=5)
    wait_for_state(vm, VMState.ERROR, within_s=10)
    assert "panic" in vm.info.reason
    assert b"Kernel panic" in vm.logs()


@pytest.mark.nested
def test_a_paused_vm_stands_still_and_goes_on_with_the_time_of_now(vm: VM, home: Home) -> None:
    vm.run("(while :; do date +%s.%N > /run/beat; sleep 0.02; done) > /dev/null 2>&1 &", check=True)
    try:
        vm.pause()
    except Unsupported as error:  # a version of Firecracker that cannot be resumed
        pytest.skip(error.message)
    assert vm.status is VMState.PAUSED
    with pytest.raises(WrongState, match="paused"):
        vm.run("true")
    end_engine(home, signal.SIGKILL)
    assert vm.refresh().state is VMState.PAUSED
    paused_at = time.time()
    time.sleep(1)  # the time in which it stands still
    assert vm.resume().status is VMState.RUNNING
    guest = float(vm.run(["date", "+%s.%N"]).stdout)
    assert paused_at + 1 < guest < time.time() + 0.5
    assert vm.pause().stop().info.reason == "stopped"


@pytest.mark.nested
def test_the_engine_can_be_killed_and_vms_go_on(vm: VM, home: Home) -> None:
    vm.run("echo state > /run/in-memory", check=True)
    pid = vm.info.pid
    end_engine(home, signal.SIGKILL)
    again = VM.from_id(vm.vm_id)
    assert again.info.pid == pid
    assert again.run("cat /run/in-memory").stdout == "state\n"
    again.close()


def test_the_engine_can_be_asked_to_end_and_vms_go_on(vm: VM, home: Home) -> None:
    pid = vm.info.pid
    end_engine(home)
    assert not home.engine_socket.exists()
    assert vm.refresh().pid == pid
    assert vm.run(["true"]).ok


def test_the_name_of_a_vm_is_as_good_as_its_id(home: Home) -> None:
    with VM(vm_id="chosen", name="spoken") as vm:
        assert vm.vm_id == "chosen"
        assert VM.from_id("spoken").vm_id == VM.from_id("chosen").vm_id == "chosen"
        with pytest.raises(NameTaken):
            VM(name="chosen")


@pytest.mark.nested
def test_environment_memory_and_processors_are_the_vms_own(home: Home) -> None:
    with VM(env_vars={"A": "of the vm"}, vcpu_count=2, mem_size_mib=300, disk_size_mib=200) as vm:
        assert vm.run("echo $A; nproc").stdout == "of the vm\n2\n"
        assert vm.run("echo $A", env={"A": "of the call"}).stdout == "of the call\n"
        memory_kib = int(vm.run("awk '/MemTotal/ {print $2}' /proc/meminfo").stdout)
        assert 200 * 1024 < memory_kib < 300 * 1024
        disk_kib = int(vm.run("df -k / | awk 'END {print $2}'").stdout)
        assert 150 * 1024 < disk_kib <= 200 * 1024
        vm.stop()
        assert vm.start().run("echo $A").stdout == "of the vm\n"


def test_the_clock_of_a_guest_is_the_hosts(vm: VM) -> None:
    before = time.time()
    guest = float(vm.run(["date", "+%s.%N"]).stdout)
    assert before - 0.5 < guest < time.time() + 0.5


def test_an_exception_in_a_with_block_deletes_the_vm(home: Home) -> None:
    with pytest.raises(ZeroDivisionError), VM() as vm:
        vm_id = vm.vm_id
        raise ZeroDivisionError
    assert vm_id not in [info.vm_id for info in VM.list()]
