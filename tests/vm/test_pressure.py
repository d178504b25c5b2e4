"""Small guests whose commands take all memory or all processes."""

import time

import pytest

from squib import VM
from squib.paths import Home
from tests.processes import until

pytestmark = pytest.mark.alone
_TRIES, _SLOW_S = 20, 2.0
_HOG = ["python3", "-c", "taken = []\nwhile True: taken.append(b'1' * (1 << 20))"]


def assert_usable(vm: VM) -> None:
    """Run echo many times; at most one may be slow."""
    took = []
    for _ in range(_TRIES):
        begun = time.monotonic()
        assert vm.run(["echo", "fine"], timeout=60).stdout == "fine\n"
        took.append(time.monotonic() - begun)
    assert sorted(took)[-2] < _SLOW_S, took


@pytest.fixture
def small_vm(home: Home) -> VM:
    return VM(runtime="python3.13", mem_size_mib=128)


def test_a_command_that_takes_all_memory_is_killed_and_the_reason_is_told(small_vm: VM) -> None:
    """Before: 137 without a reason, and other commands hung for 5 to 30 s."""
    with small_vm as vm:
        innocent = vm.spawn(["sleep", "1000"])
        result = vm.run(_HOG, timeout=60)
        assert (result.exit_code, result.oom_killed) == (137, True)
        assert not vm.run(["false"]).oom_killed
        hog = vm.spawn('while :; do python3 -c "$CODE"; done', env={"CODE": _HOG[2]})
        assert_usable(vm)
        hog.kill()
        assert innocent.refresh().running


def test_commands_that_take_all_memory_together_leave_the_guest_usable(small_vm: VM) -> None:
    with small_vm as vm:
        hogs = [vm.spawn('while :; do python3 -c "$CODE"; done', env={"CODE": _HOG[2]}) for _ in range(2)]
        assert_usable(vm)
        for hog in hogs:
            hog.kill()


def test_a_fork_bomb_leaves_the_guest_usable_and_can_be_killed(small_vm: VM) -> None:
    """Before: commands were dead for 12 to 20 s, and the background command was killed."""
    with small_vm as vm:
        innocent = vm.spawn(["sleep", "1000"])
        bomb = vm.spawn("b() { b | b & }; b")
        until(lambda: int(vm.run("ls -d /proc/[0-9]* | wc -l").stdout) > 100, "it multiplies", within_s=20)
        assert_usable(vm)
        assert innocent.refresh().running
        assert not bomb.refresh().running
        bomb.kill()
        assert bomb.id not in vm.run(["ls", "/sys/fs/cgroup/squib"]).stdout.split(), "processes of it are left"
