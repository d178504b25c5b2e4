"""Suspend, snapshots, forks and rollback on a real VMM: what goes on, from where, and who it then is."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from squib import VM, SquibError, VMState
from squib.paths import Home
from tests.processes import until
from tests.vm.conftest import PATIENCE, SAVED_MEMORY, SEED, end_engine, resources

pytestmark = pytest.mark.nested

READ_COUNT = "until read -r n < /dev/shm/count; do :; done; echo $n"
"""The file is empty for a moment each time it is written."""
COUNT = "i=0; while :; do i=$((i+1)); echo $i > /dev/shm/count; sleep 0.02; done"
IDENTITY = """
cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid /etc/machine-id
hostname
head -c 16 /dev/urandom | od -An -tx1
date +%s.%N
"""
FORKS = int(os.environ.get("SQUIB_TEST_FORKS", "10"))
"""Fifty take five minutes with TCG on two CPUs."""
DEPTH = max(3, round(10 / PATIENCE))
CLOCK_S = 0.1 * PATIENCE


@pytest.fixture
def vm(home: Home) -> Iterator[VM]:
    """A VM that runs and can be saved."""
    with VM() as vm:
        yield vm


def remove_snapshot(name: str) -> None:
    subprocess.run([sys.executable, "-m", "squib", "snapshot", "rm", name], check=True, capture_output=True)


def count(vm: VM) -> int:
    return int(vm.run(READ_COUNT, check=True).stdout)


def goes_on_counting(vm: VM, at_least: int) -> None:
    first = count(vm)
    assert first >= at_least
    until(lambda: count(vm) > first, "it stands still", within_s=20 * PATIENCE)


def clock_is_right(date: str) -> bool:
    return abs(float(date) - time.time()) < 2 * CLOCK_S


def test_a_suspended_vm_goes_on_where_it_was(vm: VM, home: Home) -> None:
    boot_id = vm.run("cat /proc/sys/kernel/random/boot_id").stdout
    counter = vm.spawn(COUNT)
    until(lambda: vm.run("test -s /dev/shm/count").ok, "it does not count", within_s=20 * PATIENCE)
    vm.run("echo unsynced > /root/file")
    before = count(vm)
    vm.suspend()
    assert (vm.status, vm.info.pid) == (VMState.SUSPENDED, None)
    assert resources(home).processes == []
    end_engine(home)
    vm.start()
    goes_on_counting(vm, before)
    assert vm.run("cat /root/file").stdout == "unsynced\n"
    assert vm.run("cat /proc/sys/kernel/random/boot_id").stdout == boot_id
    assert clock_is_right(vm.run("date +%s.%N").stdout)
    counter.kill()
    assert vm.processes() == []


def test_a_program_that_waits_for_a_command_is_told_that_its_vm_was_suspended(vm: VM) -> None:
    errors: list[SquibError] = []

    def wait() -> None:
        with pytest.raises(SquibError) as caught:
            vm.run("echo started > /dev/shm/started; sleep 1000")
        errors.append(caught.value)

    waiting = threading.Thread(target=wait)
    waiting.start()
    until(lambda: vm.run("test -s /dev/shm/started").ok, "it does not start", within_s=20 * PATIENCE)
    vm.suspend()
    waiting.join(20)
    assert len(errors) == 1 and "ended" in str(errors[0])
    vm.start()
    assert vm.run("pgrep sleep").stdout == ""  # it ended with its client's connection


def test_forks_go_on_from_the_same_moment_and_are_someone_else(vm: VM) -> None:
    vm.spawn(COUNT)
    until(lambda: vm.run("test -s /dev/shm/count").ok, "it does not count", within_s=20 * PATIENCE)
    vm.run("echo $(hostname) > /root/file; exec 3> /root/open; echo half >&3", check=True)
    before = count(vm)
    forks = vm.fork(3, name="child")
    try:
        assert [fork.name for fork in forks] == ["child-1", "child-2", "child-3"]
        goes_on_counting(vm, before)
        for fork in forks:
            goes_on_counting(fork, before)
            fork.run("echo $(hostname) >> /root/file; sync", check=True)
        identities = [one.run(IDENTITY, check=True).stdout.split("\n")[:-1] for one in (vm, *forks)]
        for values in zip(*identities, strict=True):
            assert len(set(values)) == 4, values
        for one in forks:
            assert one.run("cat /root/file").stdout == f"{vm.name}\n{one.name}\n"
            identity = json.loads(one.run("cat /run/squib/identity.json").stdout)
            assert (identity["vm_id"], identity["name"]) == (one.vm_id, one.name)
        assert vm.run("cat /root/file").stdout == f"{vm.name}\n"
    finally:
        for fork in forks:
            fork.delete()


def test_a_command_can_ask_for_a_signal_in_its_forks(vm: VM) -> None:
    script = "trap 'echo forked > /dev/shm/signal' USR1; touch /dev/shm/ready; while :; do sleep 0.05; done"
    vm.spawn(script, restore_signal=signal.SIGUSR1)
    until(lambda: vm.run("test -e /dev/shm/ready").ok, "it does not start", within_s=20 * PATIENCE)
    [fork] = vm.fork()
    try:
        until(lambda: fork.run("test -s /dev/shm/signal").ok, "there is no signal", within_s=20 * PATIENCE)
        assert not vm.run("test -e /dev/shm/signal").ok
    finally:
        fork.delete()


def test_commands_of_the_parent_do_not_notice_a_fork_and_their_copies_end(vm: VM) -> None:
    if vm.info.driver == "firecracker":
        pytest.skip("a guest under Firecracker ends its connections when it is saved (docs/snapshots.md)")
    results: list[str] = []

    def wait() -> None:
        results.append(
            vm.run("touch /dev/shm/started; while [ ! -e /dev/shm/go ]; do sleep 0.05; done; echo done").output
        )

    waiting = threading.Thread(target=wait)
    waiting.start()
    until(lambda: vm.run("test -e /dev/shm/started").ok, "it does not start", within_s=20 * PATIENCE)
    [fork] = vm.fork()
    try:
        assert fork.processes() == []
        assert fork.run("pgrep sleep").stdout == ""
        vm.run("touch /dev/shm/go")
        waiting.join(20 * PATIENCE)
        assert results == ["done\n"]
    finally:
        fork.delete()


def test_a_snapshot_makes_vms_in_a_later_engine_when_its_vm_is_gone(vm: VM, home: Home) -> None:
    vm.spawn(COUNT)
    until(lambda: vm.run("test -s /dev/shm/count").ok, "it does not count", within_s=20 * PATIENCE)
    vm.run("echo saved > /root/file")
    before = count(vm)
    vm.snapshot("first")
    try:
        goes_on_counting(vm, before)
        vm.run("echo later > /root/file; sync")
        vm.delete()
        end_engine(home, signal.SIGKILL)
        with VM(snapshot="first") as one, VM(snapshot="first") as other:
            for copy in (one, other):
                assert copy.run("cat /root/file").stdout == "saved\n"
                goes_on_counting(copy, before)
            assert one.run(IDENTITY).stdout.split()[:2] != other.run(IDENTITY).stdout.split()[:2]
        with VM(snapshot="first", cold=True) as booted:
            assert not booted.run("test -e /dev/shm/count").ok
    finally:
        remove_snapshot("first")


def test_a_snapshot_of_the_disk_has_all_that_was_written(vm: VM) -> None:
    vm.run("echo saved > /root/file; echo memory > /dev/shm/file")  # not synced
    vm.snapshot("disk", disk_only=True)
    try:
        with VM(snapshot="disk") as copy:
            assert copy.run("cat /root/file").stdout == "saved\n"
            assert not copy.run("test -e /dev/shm/file").ok
    finally:
        remove_snapshot("disk")


def test_a_rollback_takes_memory_and_disk_back(vm: VM) -> None:
    vm.run("echo first > /root/file; echo first > /dev/shm/file")
    saved = vm.snapshot("before")
    try:
        for _ in range(2):
            vm.run("echo second > /root/file; echo second > /dev/shm/file; sync; rm /bin/ls", check=True)
            vm_id, pid = vm.vm_id, vm.info.pid
            vm.rollback(saved)
            assert (vm.vm_id, vm.status) == (vm_id, VMState.RUNNING) and vm.info.pid != pid
            assert vm.run("cat /root/file /dev/shm/file; ls /bin/ls").stdout == "first\nfirst\n/bin/ls\n"
    finally:
        remove_snapshot("before")


def test_forks_of_forks_are_deleted_in_any_order_and_the_others_work(vm: VM) -> None:
    line = [vm]
    for depth in range(1, DEPTH):
        line[-1].run(f"echo {depth} >> /root/line; echo {depth} >> /dev/shm/line", check=True)
        line += line[-1].fork(persistence="persistent")
    try:
        order = list(enumerate(line[1:], 1))
        random.Random(1).shuffle(order)
        for number, (_, fork) in enumerate(order):
            fork.delete()
            for depth, survivor in order[number + 1 :: 3]:
                wanted = "".join(f"{n}\n" for n in range(1, min(depth + 2, DEPTH)))
                assert survivor.run("sync; cat /root/line").stdout == wanted
                assert survivor.run("cat /dev/shm/line").stdout == wanted
        assert vm.run("cat /root/line").stdout == "1\n"
    finally:
        for fork in line[1:]:
            fork.delete()


def test_a_database_that_is_written_while_it_is_forked_is_whole_in_every_fork(home: Home) -> None:
    writer = """
import itertools, sqlite3
db = sqlite3.connect("/root/db", isolation_level=None)
db.execute("PRAGMA journal_mode = WAL")
db.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, text TEXT)")
for n in itertools.count():
    db.execute("INSERT INTO t VALUES (?, ?)", (n, "x" * 500))
    if n == 10:
        open("/dev/shm/writing", "w").close()
"""
    check = """
import sqlite3
db = sqlite3.connect("/root/db")
[(count, most)] = db.execute("SELECT count(*), max(n) FROM t").fetchall()
print(db.execute("PRAGMA integrity_check").fetchone()[0], count == most + 1)
"""
    with VM(runtime="python3.13") as vm:
        vm.files.write("/root/writer.py", writer)
        vm.files.write("/root/check.py", check)
        writing = vm.spawn(["python3", "/root/writer.py"])
        until(lambda: vm.run("test -e /dev/shm/writing").ok, "it does not write", within_s=60 * PATIENCE)
        for _ in range(max(1, FORKS // 10)):
            for fork in vm.fork(min(FORKS, 10)):
                fork.run(["pkill", "-KILL", "-f", "writer.py"])
                assert fork.run(["python3", "/root/check.py"]).output == "ok True\n"
                fork.delete()
        assert vm.process(writing.id).info.running
        writing.kill()
        assert vm.run(["python3", "/root/check.py"]).output == "ok True\n"


def test_the_pages_that_forks_do_not_write_are_shared(vm: VM) -> None:
    forks = vm.fork(3)
    try:
        for fork in forks:
            fork.run("true", check=True)
            with open(f"/proc/{fork.info.pid}/smaps") as smaps:  # noqa: PTH123
                [memory] = re.findall(rf"{SAVED_MEMORY}\b.*?Pss: +(\d+) kB", smaps.read(), re.DOTALL)
            assert int(memory) < 60 << 10
    finally:
        for fork in forks:
            fork.delete()


def test_the_engine_that_is_killed_while_it_saves_loses_no_vm(vm: VM, home: Home) -> None:
    """At random moments of suspends, snapshots, forks and rollbacks."""
    vm.run("echo kept > /root/file; sync")
    vm.snapshot("safe")
    print(f"SQUIB_TEST_SEED={SEED}")
    chance = random.Random(SEED)
    verbs = {
        "suspend": lambda: vm.suspend(),
        "snapshot": lambda: vm.snapshot("half"),
        "fork": lambda: vm.fork(2),
        "rollback": lambda: vm.rollback("safe"),
    }
    try:
        for name in list(verbs) * max(1, round(4 / PATIENCE)):
            killer = threading.Timer(chance.uniform(0, 0.8) * PATIENCE, end_engine, (home, signal.SIGKILL))
            killer.start()
            try:
                verbs[name]()
            except (SquibError, ExceptionGroup) as error:
                print(f"{name}: {error}")
            killer.join()
            if vm.refresh().state is not VMState.RUNNING:
                vm.start()
            assert vm.run("cat /root/file", timeout=20 * PATIENCE).stdout == "kept\n", name
            for info in VM.list():
                if info.vm_id != vm.vm_id:
                    VM.from_id(info.vm_id).delete()
            listed = json.loads(
                subprocess.run(
                    [sys.executable, "-m", "squib", "--json", "snapshot", "ls"], check=True, capture_output=True
                ).stdout
            )
            assert {one["name"] for one in listed} <= {"safe", "half"}
            if len(listed) > 1:
                remove_snapshot("half")
        assert len(list(home.snapshots.iterdir())) == 1
    finally:
        remove_snapshot("safe")
