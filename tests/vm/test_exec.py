"""Commands in a real guest: bytes, streams, exit codes, timeouts, users."""

import asyncio
import concurrent.futures
import os
import signal
from pathlib import Path

import pytest

from squib import (
    VM,
    ArgumentsTooLong,
    AsyncVM,
    BadWorkingDirectory,
    CommandFailed,
    CommandNotFound,
    CommandTimeout,
    InvalidArgument,
    NoSuchUser,
    NotExecutable,
)
from squib.paths import Home
from tests.vm.conftest import PATIENCE, engine_pids

pytestmark = pytest.mark.nested


def test_the_guest_has_a_kernel_of_its_own(shared_vm: VM) -> None:
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    assert shared_vm.run(["cat", str(boot_id)], check=True).output != boot_id.read_text()
    assert shared_vm.run("hostname").output.strip() == shared_vm.name
    assert shared_vm.run(["python3", "-c", "print(6*7)"]).output == "42\n"


def test_a_string_goes_through_a_shell_and_a_list_does_not(shared_vm: VM) -> None:
    assert shared_vm.run("echo $((1+1)) | cat").stdout == "2\n"
    assert shared_vm.run(["echo", "$((1+1))", "a b", ""]).stdout == "$((1+1)) a b \n"


@pytest.mark.parametrize(
    ("command", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -TERM $$", 128 + 15), ("kill -KILL $$", 128 + 9)]
)
def test_exit_codes_and_signals(shared_vm: VM, command: str, code: int) -> None:
    result = shared_vm.run(command)
    assert result.exit_code == code
    assert result.ok == (code == 0)
    assert result.signal == (code - 128 if code > 128 else None)


def test_a_mebibyte_of_random_bytes_comes_back(shared_vm: VM) -> None:
    data = os.urandom(1 << 20)
    result = shared_vm.run(["cat"], input=data)
    assert result.stdout_bytes == data
    assert result.ok


def test_bytes_that_are_no_utf8_come_through(shared_vm: VM) -> None:
    result = shared_vm.run(["printf", r"\377\376a\000b"])
    assert result.stdout_bytes == b"\xff\xfea\0b"
    assert result.stdout == "��a\0b"
    assert shared_vm.run(["printf", "%s", "\udcff"]).stdout_bytes == b"\xff"


def test_a_line_of_ten_mebibytes(shared_vm: VM) -> None:
    result = shared_vm.run(["head", "-c", str(10 << 20), "/dev/zero"])
    assert result.stdout_bytes == bytes(10 << 20)


def test_two_hundred_thousand_lines(shared_vm: VM) -> None:
    result = shared_vm.run(["seq", "200000"])
    assert result.stdout_bytes == b"".join(b"%d\n" % number for number in range(1, 200_001))


def test_both_streams_are_whole_and_in_order(shared_vm: VM) -> None:
    script = "for i in $(seq 500); do echo out $i; echo err $i >&2; done"
    result = shared_vm.run(script)
    assert result.stdout == "".join(f"out {number}\n" for number in range(1, 501))
    assert result.stderr == "".join(f"err {number}\n" for number in range(1, 501))
    assert sorted(result.output.splitlines()) == sorted((result.stdout + result.stderr).splitlines())


def test_streams_interleave_as_they_are_written(shared_vm: VM) -> None:
    """A writer that waits for its reader between lines decides their order."""
    script = "echo 1; sleep 0.2; echo 2 >&2; sleep 0.2; echo 3"
    assert shared_vm.run(script).output == "1\n2\n3\n"


def test_output_is_seen_while_the_command_runs(shared_vm: VM) -> None:
    seen: list[bytes] = []
    command = "echo first; echo problem >&2; read line; echo got $line"

    async def main() -> None:
        vm = await AsyncVM.from_id(shared_vm.vm_id)
        result = await vm.run(command, input="hello\n", on_stdout=seen.append, on_stderr=seen.append)
        assert result.stdout == "first\ngot hello\n"
        await vm.close()

    asyncio.run(main())
    assert sorted(b"".join(seen).splitlines()) == [b"first", b"got hello", b"problem"]


def test_a_command_that_prints_for_ever_ends_with_its_children(shared_vm: VM, home: Home) -> None:
    rss_before = rss_mib(engine_pids(home)[0])
    command = "setsid sh -c 'exec -a orphan sleep 1000' & yes & (sleep 1001 &) ; yes"
    result = shared_vm.run(["bash", "-c", command], timeout=3 * PATIENCE)
    assert (result.timed_out, result.exit_code) == (True, 124)
    assert len(result.stdout_bytes) > 1 << 20
    left = shared_vm.run("pgrep -l 'yes|sleep'")
    assert left.output == ""
    assert rss_mib(engine_pids(home)[0]) - rss_before < 20


def rss_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def test_a_background_child_does_not_hold_the_command_up(shared_vm: VM) -> None:
    result = shared_vm.run("sleep 60 & echo started", timeout=20)
    assert result.stdout == "started\n"
    assert not result.timed_out
    assert shared_vm.run("pkill sleep").ok


def test_check_raises(shared_vm: VM) -> None:
    with pytest.raises(CommandFailed, match="exit code 3") as failed:
        shared_vm.run("echo why >&2; exit 3", check=True)
    assert failed.value.detail == "why"
    with pytest.raises(CommandTimeout):
        shared_vm.run("sleep 100", check=True, timeout=0.5)


def test_environment_and_directory(shared_vm: VM) -> None:
    assert shared_vm.run("echo $A-$B; pwd", env={"A": "1", "B": "x y"}, cwd="/usr").stdout == "1-x y\n/usr\n"
    assert shared_vm.run("echo $HOME $USER $PATH").stdout.startswith("/root root /usr/local/sbin:")


@pytest.mark.parametrize(
    ("user", "expected"), [("nobody", "65534 65534"), ("1234", "1234 0"), ("1234:5", "1234 5"), ("root:adm", "0 4")]
)
def test_users(shared_vm: VM, user: str, expected: str) -> None:
    uid, gid = shared_vm.run("id -u; id -g", user=user).stdout.split()
    assert uid == expected.split()[0]
    if ":" in user or user == "nobody":
        assert gid == expected.split()[1]


@pytest.mark.parametrize(
    ("command", "options", "error"),
    [
        (["nosuchprogram"], {}, CommandNotFound),
        (["/etc/passwd"], {}, NotExecutable),
        (["/"], {}, NotExecutable),
        (["true"], {"cwd": "/nosuch"}, BadWorkingDirectory),
        (["true"], {"user": "nosuch"}, NoSuchUser),
    ],
)
def test_what_cannot_be_started_says_why(
    shared_vm: VM, command: list[str], options: dict[str, str], error: type[Exception]
) -> None:
    with pytest.raises(error):
        shared_vm.run(command, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "arguments",
    [["x" * 65_536] * 16, ["é" * 60_000] * 3, ["\x01" * 65_536] * 30, ["x" * ((128 << 10) - 1)]],
    ids=["1 MiB", "two-byte characters", "nearly 2 MiB, escaped", "one string"],
)
def test_a_command_may_have_the_arguments_that_linux_takes(shared_vm: VM, arguments: list[str]) -> None:
    assert shared_vm.run(["printf", "%s", *arguments]).stdout == "".join(arguments)


@pytest.mark.parametrize("arguments", [["x" * (128 << 10)], ["x" * 65_536] * 33], ids=["one string", "all"])
def test_more_arguments_than_linux_takes_have_an_error_of_their_own(shared_vm: VM, arguments: list[str]) -> None:
    with pytest.raises(ArgumentsTooLong, match="2 MiB in total") as caught:
        shared_vm.run(["printf", "%s", *arguments])
    assert "vm.files.write" in caught.value.hint


@pytest.mark.parametrize("command", [[], ["a\0b"]])
def test_what_is_no_command_is_refused(shared_vm: VM, command: list[str]) -> None:
    with pytest.raises(InvalidArgument):
        shared_vm.run(command)


def test_input_that_nobody_reads_is_no_error(shared_vm: VM) -> None:
    assert shared_vm.run(["true"], input=bytes(4 << 20)).ok
    assert shared_vm.run(["head", "-c", "3"], input=b"abc" * (1 << 20)).stdout == "abc"


def test_many_commands_at_once(shared_vm: VM) -> None:
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        results = list(pool.map(lambda number: shared_vm.run(["echo", str(number)]), range(40)))
    assert [result.stdout for result in results] == [f"{number}\n" for number in range(40)]


def test_a_cancelled_command_is_gone_in_the_guest(shared_vm: VM) -> None:
    async def main() -> None:
        vm = await AsyncVM.from_id(shared_vm.vm_id)
        started = asyncio.Event()
        task = asyncio.create_task(vm.run("echo; sleep 4242", on_stdout=lambda _: started.set()))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gone = "for i in $(seq 100); do pgrep -f 'sleep 424[2]' >/dev/null || exit 0; sleep 0.02; done; exit 1"
        assert (await vm.run(gone)).ok
        await vm.close()

    asyncio.run(main())


def test_a_killed_client_takes_its_command_with_it(shared_vm: VM) -> None:
    """`kill -9` of the process that waits for a foreground command."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            VM.from_id(shared_vm.vm_id).run("echo; sleep 5353", on_stdout=lambda _: os.write(write, b"x") and None)
        finally:
            os._exit(1)
    os.close(write)
    assert os.read(read, 1) == b"x"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(read)
    gone = "for i in $(seq 100); do pgrep -f 'sleep 535[3]' >/dev/null || exit 0; sleep 0.02; done; exit 1"
    assert shared_vm.run(gone).ok
