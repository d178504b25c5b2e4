"""``run``: what goes into a command and what comes back, through the SDK, the engine and a fake guest."""

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from squib.errors import (
    AgentProtocolError,
    AgentUnreachable,
    CommandFailed,
    CommandNotFound,
    CommandTimeout,
    InvalidArgument,
    NoShell,
    NotFound,
    OutputTooLarge,
    WrongState,
)
from squib.protocol.frames import FrameKind
from squib.sdk.aio import AsyncVM
from squib.sdk.client import EngineClient
from squib.sdk.command import exec_request, start_command
from squib.sdk.vm import VM
from tests.fakes.served import Served

pytestmark = pytest.mark.usefixtures("served")


@pytest.fixture
def vm(served: Served) -> VM:
    return VM.from_id("web")


async def check(test: Callable[[AsyncVM], Awaitable[None]]) -> None:
    async with asyncio.timeout(20):
        vm = await AsyncVM.from_id("web")
        try:
            await test(vm)
        finally:
            await vm.close()


def test_a_list_is_a_program_and_its_arguments(vm: VM) -> None:
    done = vm.run(["echo", "a b", "$HOME", "é"])
    assert (done.exit_code, done.ok, done.stdout, done.stderr) == (0, True, "a b $HOME é\n", "")
    assert (done.signal, done.timed_out, done.truncated) == (None, False, False)
    assert vm.run(("echo", "tuple")).stdout == "tuple\n"


def test_a_string_is_for_the_shell(vm: VM) -> None:
    with pytest.raises(NoShell) as caught:
        vm.run("echo hello")
    assert "as a list" in caught.value.hint


def test_output_is_bytes_and_text(vm: VM) -> None:
    done = vm.run(["echo", os.fsdecode(b"\xff\xfe")])
    assert (done.stdout_bytes, done.stdout) == (b"\xff\xfe\n", "\ufffd\ufffd\n")
    done = vm.run(["err", "oops"])
    assert (done.stdout, done.stderr, done.output) == ("", "oops\n", "oops\n")


@pytest.mark.parametrize("status", [1, 3, 255])
def test_a_status_is_no_exception(vm: VM, status: int) -> None:
    done = vm.run(["exit", str(status)])
    assert (done.exit_code, done.ok) == (status, False)


def test_with_check_it_is(vm: VM) -> None:
    assert vm.run(["true"], check=True).ok
    with pytest.raises(CommandFailed, match="failed with exit code 3: exit 3"):
        vm.run(["exit", "3"], check=True)
    with pytest.raises(CommandTimeout, match="timed out: sleep"):
        vm.run(["sleep"], check=True, timeout=0.01)


def test_a_timeout_is_status_124(vm: VM) -> None:
    done = vm.run(["sleep"], timeout=0.01)
    assert (done.exit_code, done.timed_out, done.ok) == (124, True, False)


def test_the_environment_reaches_the_command(vm: VM) -> None:
    assert json.loads(vm.run(["env"], env={"A": "1", "B": "é \udcff"}).stdout) == {"A": "1", "B": "é \udcff"}


@pytest.mark.parametrize(
    ("given", "read"),
    [(b"", b""), ("", b""), ("é\n", b"\xc3\xa9\n"), (b"\x00\xff", b"\x00\xff"), (os.urandom(1 << 20), None)],
    ids=["no bytes", "no text", "text", "bytes", "1 MiB"],
)
def test_input_comes_back_identical(vm: VM, given: str | bytes, read: bytes | None) -> None:
    assert vm.run(["cat"], input=given).stdout_bytes == (given if read is None else read)


def test_input_that_nobody_reads_is_no_error(vm: VM) -> None:
    assert vm.run(["true"], input=b"x" * (1 << 20)).ok


def test_callbacks_see_the_bytes_as_they_come(vm: VM) -> None:
    out, err = [], []
    done = vm.run(["cat"], input=b"x" * 200_000, on_stdout=out.append, on_stderr=err.append)
    assert b"".join(out) == done.stdout_bytes == b"x" * 200_000
    assert len(out) > 1 and err == []
    vm.run(["err", "oops"], on_stdout=out.clear, on_stderr=err.append)  # type: ignore[arg-type]
    assert err == [b"oops\n"]


async def until_killed(served: Served, before: int) -> None:
    while len(served.agent.killed) == before:
        await asyncio.sleep(0.002)


@pytest.mark.anyio
async def test_a_callback_that_fails_ends_the_command(served: Served) -> None:
    async def test(vm: AsyncVM) -> None:
        killed = len(served.agent.killed)

        def fail(data: bytes) -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await vm.run(["spam"], on_stdout=fail)
        await until_killed(served, killed)

    await check(test)


@pytest.mark.anyio
async def test_cancelling_kills_the_command(served: Served) -> None:
    async def test(vm: AsyncVM) -> None:
        killed = len(served.agent.killed)
        seen = asyncio.Event()
        task = asyncio.create_task(vm.run(["spam"], on_stdout=lambda data: seen.set()))
        await seen.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until_killed(served, killed)
        assert (await vm.run(["true"])).ok

    await check(test)


def test_only_so_much_output_is_kept(vm: VM) -> None:
    seen: list[int] = []
    done = vm.run(["cat"], input=b"x" * 300_000, on_stdout=lambda data: seen.append(len(data)), max_output=100_000)
    assert (done.truncated, len(done.stdout_bytes), len(done.output_bytes)) == (True, 100_000, 100_000)
    assert sum(seen) == 300_000, "callbacks see all of it"
    assert done.ok and done.dropped_bytes == 200_000
    with pytest.raises(OutputTooLarge):
        vm.run(["cat"], input=b"x" * 300_000, max_output=100_000, truncate="error")
    exactly = vm.run(["cat"], input=b"x" * 100_000, max_output=100_000)
    assert (exactly.truncated, len(exactly.stdout_bytes)) == (False, 100_000)


def test_what_is_no_output_is_told(vm: VM) -> None:
    with pytest.raises(AgentProtocolError, match="kind 99, which a guest must not send"):
        vm.run(["garbage"])
    assert vm.run(["true"]).ok


def test_a_command_that_is_not_there(vm: VM) -> None:
    with pytest.raises(CommandNotFound, match="nosuch"):
        vm.run(["nosuch"])


@pytest.mark.parametrize(
    ("cmd", "options", "message"),
    [
        ([], {}, "argv: "),
        (["a\0"], {}, "argv.0: contains a NUL byte"),
        ("a\0", {}, "shell: contains a NUL byte"),
        ([1], {}, "argv.0: "),
        (b"ls", {}, "argv.0: "),
        (["a"], {"timeout": -1}, "timeout_s: .*greater than or equal to 0"),
        (["a"], {"timeout": float("inf")}, "timeout_s: "),
        (["a"], {"timeout": float("nan")}, "timeout_s: "),
        (["a"], {"cwd": "/\0"}, "cwd: "),
        (["a"], {"env": {"A-B": "1"}}, "env: invalid environment variable 'A-B'"),
        (["a"], {"user": "\0"}, "user: "),
    ],
)
def test_what_cannot_be_is_refused_before_it_is_sent(
    vm: VM, cmd: object, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        vm.run(cmd, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("env", [{"TOKEN": 13371337}, {"TOKEN": "13371337\0"}])
def test_a_refused_environment_does_not_show_its_values(vm: VM, env: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument, match="env") as caught:
        vm.run(["a"], env=env)
    assert "13371337" not in str(caught.value)


@pytest.mark.anyio
async def test_many_commands_at_once_and_from_many_threads(vm: VM) -> None:
    async def test(vm: AsyncVM) -> None:
        done = await asyncio.gather(*(vm.run(["echo", str(number)]) for number in range(30)))
        assert [one.stdout for one in done] == [f"{number}\n" for number in range(30)]

    await check(test)
    answers: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda n=n: answers.update({n: vm.run(["echo", str(n)]).stdout})) for n in range(10)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert answers == {number: f"{number}\n" for number in range(10)}


@pytest.mark.anyio
async def test_input_may_be_an_iterator_that_waits(served: Served) -> None:
    async with asyncio.timeout(20), EngineClient() as engine:
        echoed = asyncio.Event()

        async def pieces() -> AsyncIterator[bytes]:
            yield b"one"
            await echoed.wait()
            yield b"two"

        output = b""
        async with start_command(engine, "web", exec_request(["cat"]), stdin=pieces()) as command:
            async for frame in command.output():
                assert frame.kind is FrameKind.STDOUT
                output += frame.payload
                echoed.set()
        assert (output, command.end.exit_code) == (b"onetwo", 0)


@pytest.mark.anyio
async def test_an_input_that_fails_ends_the_command_with_its_error(served: Served) -> None:
    async with asyncio.timeout(20), EngineClient() as engine:

        async def pieces() -> AsyncIterator[bytes]:
            yield b"one"
            raise ZeroDivisionError

        killed = len(served.agent.killed)
        with pytest.raises(ZeroDivisionError):
            async with start_command(engine, "web", exec_request(["cat"]), stdin=pieces()) as command:
                async for _ in command.output():
                    pass
        await until_killed(served, killed)


@pytest.mark.anyio
async def test_a_signal_reaches_the_command_and_a_late_one_is_no_error(served: Served) -> None:
    async with asyncio.timeout(20), EngineClient() as engine:
        async with start_command(engine, "web", exec_request(["sleep"])) as command:
            await command.signal(15)
            async for _ in command.output():
                pass
        assert served.agent.killed[-1].endswith("signal 15")


@pytest.mark.anyio
async def test_the_end_is_known_only_when_the_output_was_read(served: Served) -> None:
    async with EngineClient() as engine, start_command(engine, "web", exec_request(["true"])) as command:
        with pytest.raises(AgentUnreachable, match="before the command exited"):
            _ = command.end


def test_a_vm_that_does_not_run_says_what_to_do(served: Served) -> None:
    vm = VM(served.rig.config, name="asleep")
    try:
        with pytest.raises(WrongState, match="asleep is created") as caught:
            vm.run(["true"])
        assert caught.value.hint == "squib start asleep"
    finally:
        vm.delete()
    with pytest.raises(NotFound):
        vm.run(["true"])


def test_a_vm_that_is_lost_is_told(served: Served) -> None:
    with VM(served.rig.config) as vm, pytest.raises(AgentUnreachable, match="lost"):
        vm.run(["vanish"])
