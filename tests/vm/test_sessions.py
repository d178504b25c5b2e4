"""Process sessions and terminals in a real guest: they outlive clients and engines, and end when they are told to."""

import asyncio
import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import pytest

from squib import VM, EngineClient, NoSuchProcess, NoTerminal, PtySize
from squib.models import ExecRequest
from squib.paths import Home
from squib.sdk.terminal import Attach, Terminal, open_terminal
from tests.vm.conftest import end_engine, engine_pids


def program(code: str, vm: VM) -> str:
    """What another program prints, which is given the VM as ``vm``."""
    code = f"import sys\nfrom squib import VM\nvm = VM.from_id(sys.argv[1])\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", code, vm.vm_id], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def gone(vm: VM, pattern: str, within_s: float) -> bool:
    """Whether no process of the guest matches, by then."""
    tries = int(within_s / 0.05)
    return vm.run(f"for i in $(seq {tries}); do pgrep -f '{pattern}' >/dev/null || exit 0; sleep 0.05; done; exit 1").ok


def test_one_program_starts_another_reads_a_third_kills(shared_vm: VM) -> None:
    script = "echo one; read line; echo got $line; exec sleep 4141"
    process_id = program(f"print(vm.spawn({script!r}, stdin=True).id)", shared_vm).strip()
    assert program(
        f"print([i.id for i in vm.processes() if i.running and {script!r} in i.argv])", shared_vm
    ).strip() == (f"['{process_id}']")
    reader = f"""
process = vm.process({process_id!r})
for chunk in process:
    print(chunk.data)
    if chunk.offset:
        break
    process.stdin.write("two\\n")
"""
    assert program(reader, shared_vm) == "b'one\\n'\nb'got two\\n'\n"
    program(f"vm.process({process_id!r}).kill()", shared_vm)
    assert gone(shared_vm, "sleep 414[1]", 0.1)
    with pytest.raises(NoSuchProcess):
        shared_vm.process(process_id)


def test_a_foreground_command_whose_client_is_killed_is_gone_with_its_children(shared_vm: VM) -> None:
    command = "setsid sleep 5151 & setsid sh -c 'sleep 5152 & wait' & echo; exec sleep 5153"
    code = (
        "import sys\nfrom squib import VM\n"
        f"VM.from_id(sys.argv[1]).run({command!r}, on_stdout=lambda data: print('started', flush=True))"
    )
    client = subprocess.Popen([sys.executable, "-c", code, shared_vm.vm_id], stdout=subprocess.PIPE)
    assert client.stdout
    client.stdout.readline()
    assert shared_vm.run("pgrep -f 'sleep 515[123]' | wc -l").stdout.strip() >= "3"
    client.kill()
    client.wait()
    start = time.monotonic()
    assert gone(shared_vm, "sleep 515[123]", 2)
    assert time.monotonic() - start < 2.5
    client.stdout.close()


def test_the_output_of_a_background_process_outlives_the_engine(vm: VM, home: Home) -> None:
    process = vm.spawn("for i in $(seq 8); do echo $i; sleep 0.5; done; exit 5")
    lines = b""
    for chunk in process:
        lines += chunk.data
        if lines == b"1\n2\n":
            end_engine(home, signal.SIGKILL)
    assert lines == b"".join(b"%d\n" % number for number in range(1, 9))
    assert process.wait().exit_code == 5
    assert b"".join(chunk.data for chunk in vm.process(process.id)) == lines


def test_waiting_goes_on_when_the_engine_is_killed(vm: VM, home: Home) -> None:
    process = vm.spawn("sleep 3; exit 6")
    with pytest.raises(TimeoutError, match="still running"):
        process.wait(0.2)
    end_engine(home, signal.SIGKILL)
    assert process.wait().exit_code == 6


async def until(terminal: Terminal, *marks: bytes) -> bytes:
    output = b""
    async for data in terminal.output():
        output += data
        if all(mark in output for mark in marks):
            break
    return output


def terminal_test(test: Callable[[EngineClient], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(90), EngineClient() as engine:
            await test(engine)

    asyncio.run(main())


SHELL = ExecRequest(
    argv=["bash", "--norc", "--noprofile"], env={"PS1": "prompt> ", "TERM": "dumb"}, pty=PtySize(rows=30, cols=100)
)


def test_a_terminal_has_a_size_job_control_and_the_exit_code_of_its_shell(shared_vm: VM) -> None:
    async def test(engine: EngineClient) -> None:
        async with open_terminal(engine, shared_vm.vm_id, SHELL) as terminal:
            await terminal.send(b"stty size\r")
            await until(terminal, b"30 100")
            await terminal.resize(51, 133)
            await terminal.send(b"stty size\r")
            await until(terminal, b"51 133")
            # What it prints says that the terminal is its own: keys before that are the shell's. (It does not fork:
            # dash stands still for ever if it is stopped in a vfork.)
            await terminal.send(
                b"""bash -c 'trap "echo job$((2))continued" CONT; echo job$((1))runs; while :; do read; done'\r"""
            )
            await until(terminal, b"job1runs")
            await terminal.send(b"\x1a")
            await until(terminal, b"Stopped")
            await terminal.send(b"fg\r")
            await until(terminal, b"job2continued")
            await terminal.send(b"\x03")
            await until(terminal, b"prompt> ")  # Ctrl-C drops what was typed and not read
            await terminal.send(b"echo status=$?\r")
            await until(terminal, b"status=130")
            await terminal.send(b"exit 9\r")
            await until(terminal, b"never")
            assert terminal.end.exit_code == 9

    terminal_test(test)


def test_a_terminal_outlives_its_client_and_the_engine_with_its_scrollback(vm: VM, home: Home) -> None:
    async def test(engine: EngineClient) -> None:
        async with open_terminal(engine, vm.vm_id, SHELL) as terminal:
            await terminal.send(b"marker=$((6*7)); echo first-$marker\r")
            seen = await until(terminal, b"first-42")
        end_engine(home, signal.SIGKILL)
        async with open_terminal(engine, vm.vm_id, Attach(terminal.id)) as again:
            assert (await until(again, b"first-42")).startswith(seen)
            await again.send(b"echo again-$marker\r")
            await until(again, b"again-42")
        async with open_terminal(engine, vm.vm_id, Attach(terminal.id, again.offset)) as third:
            await third.send(b"exit 3\r")
            rest = await until(third, b"never")
            assert b"first-42" not in rest and third.end.exit_code == 3

    terminal_test(test)


def test_every_byte_goes_through_a_raw_terminal(shared_vm: VM) -> None:
    data = bytes(range(256)) * 400

    async def test(engine: EngineClient) -> None:
        script = f"stty raw -echo; echo ready; head -c {len(data)} | sha256sum"
        request = ExecRequest(argv=["sh", "-c", script], pty=PtySize())
        async with open_terminal(engine, shared_vm.vm_id, request) as terminal:
            await until(terminal, b"ready")
            await terminal.send(data)
            output = await until(terminal, b"never")
            assert hashlib.sha256(data).hexdigest().encode() in output

    terminal_test(test)


def test_what_has_no_terminal_and_who_runs_it(shared_vm: VM) -> None:
    with shared_vm.spawn(["sleep", "7171"], user="nobody") as process:
        with pytest.raises(NoTerminal):
            process.resize(1, 1)
        assert process.info.user == "nobody"
        assert shared_vm.run(["ps", "-o", "user=", "-p", str(process.pid)]).stdout.strip() == "nobody"
    assert shared_vm.run('echo "$(id -u) $SUDO_USER"', user="nobody", sudo=True).stdout.strip() == "0 nobody"


def test_a_client_that_is_suspended_loses_no_terminal(shared_vm: VM) -> None:
    code = f"""
import asyncio, os
from squib import EngineClient
from squib.sdk.terminal import open_terminal
from squib.models import ExecRequest, PtySize

async def main():
    async with EngineClient() as engine:
        request = ExecRequest(argv=["seq", "2000000"], pty=PtySize())
        async with open_terminal(engine, {shared_vm.vm_id!r}, request) as terminal:
            print(terminal.id, flush=True)
            size = 0
            async for data in terminal.output():
                size += len(data)
            print(size, terminal.end.exit_code)

asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as client:
        try:
            assert client.stdout
            process_id = client.stdout.readline().strip()
            os.kill(client.pid, signal.SIGSTOP)
            time.sleep(30)
            assert shared_vm.process(process_id).info.running
            os.kill(client.pid, signal.SIGCONT)
            expected = sum(len(f"{number}\r\n") for number in range(1, 2_000_001))
            assert client.stdout.readline().split() == [str(expected), "0"]
        finally:
            with contextlib.suppress(ProcessLookupError):
                client.kill()


def test_terminals_do_not_make_the_engine_grow(shared_vm: VM, home: Home) -> None:
    def rss_mib() -> float:
        with open(f"/proc/{engine_pids(home)[0]}/statm") as file:  # noqa: PTH123
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)

    async def test(engine: EngineClient) -> None:
        async with open_terminal(engine, shared_vm.vm_id, ExecRequest(argv=["true"], pty=PtySize())) as terminal:
            await until(terminal, b"never")
        before = rss_mib()
        async with open_terminal(engine, shared_vm.vm_id, ExecRequest(argv=["yes"], pty=PtySize())) as slow:
            await asyncio.sleep(5)  # a client that does not read
            assert rss_mib() - before < 8
            await slow.signal(9)

    terminal_test(test)
