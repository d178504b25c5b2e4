"""``exec``: arguments, streams, signals and the status."""

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from squib.cli.actions import command
from squib.protocol.frames import FrameKind
from squib.sdk.command import Command
from tests.fakes.processes import FakeProcess, Script
from tests.fakes.recorder import Recorder
from tests.fakes.served import Served
from tests.unit.cli.conftest import Squib

RAW = bytes(range(256)) * 3


def ends(end: int | dict[str, Any] = 0, *, stdout: bytes = b"", stderr: bytes = b"") -> Script:
    """Return a program that prints and ends."""

    async def script(process: FakeProcess) -> int | dict[str, Any]:
        if stdout:
            await process.write(FrameKind.STDOUT, stdout)
        if stderr:
            await process.write(FrameKind.STDERR, stderr)
        return end

    return script


class Forever:
    """A program that does not end. It sends squib a signal, and prints if it is told to."""

    def __init__(self, number: int | None = None, *, prints: bool = False) -> None:
        self.number, self.prints = number, prints
        self.killed = threading.Event()

    async def __call__(self, process: FakeProcess) -> int:
        try:
            if self.number:
                os.kill(os.getpid(), self.number)
            while self.prints:
                await process.write(FrameKind.STDOUT, b"y\n")
            await asyncio.Event().wait()
        finally:
            self.killed.set()
        return 0


@pytest.mark.parametrize(
    ("line", "argv"),
    [
        ("exec web ls -la", ["ls", "-la"]),
        ("exec web ls --json --user x", ["ls", "--json", "--user", "x"]),
        ("exec web -- ls -la", ["ls", "-la"]),
        ("exec -- web ls -- -la", ["ls", "--", "-la"]),
        ("exec web sh -c exit", ["sh", "-c", "exit"]),
        ("exec --user nobody web id -u", ["id", "-u"]),
        ("exec web --help", ["--help"]),
    ],
)
def test_everything_after_the_vm_belongs_to_the_command(
    line: str, argv: list[str], squib: Squib, engine: Served, requests: Recorder
) -> None:
    engine.agent.scripts |= dict.fromkeys(["ls", "sh", "id", "--help"], ends())
    assert squib(*line.split()).status == 0
    assert requests.body("POST /vms/web/exec")["argv"] == argv


def test_arguments_may_hold_any_bytes(squib: Squib, requests: Recorder) -> None:
    ended = squib("exec", "web", "echo", os.fsdecode(b"a\x80 \n$(x)"))
    assert requests.body("POST /vms/web/exec")["argv"] == ["echo", "a\udc80 \n$(x)"]
    assert ended.out == b"a\x80 \n$(x)\n"


def test_flags_before_the_vm_are_ours(squib: Squib, requests: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAKEN", "from here")
    squib("exec", "-u", "nobody", "-w", "/tmp", "-e", "A=1=2", "--env", "TAKEN", "--timeout", "5m", "web", "true")
    assert requests.body("POST /vms/web/exec") == {
        "argv": ["true"],
        "user": "nobody",
        "cwd": "/tmp",
        "env": {"A": "1=2", "TAKEN": "from here"},
        "timeout_s": 300,
    }


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--timeout", "soon"], "--timeout: invalid time 'soon'"),
        (["-e", "1A=x"], "'1A'"),
        (["-e", "NOT_SET_HERE"], "--env: 'NOT_SET_HERE'"),
    ],
)
def test_bad_values_are_refused_by_the_name_of_their_flag(
    flags: list[str], said: str, squib: Squib, requests: Recorder
) -> None:
    ended = squib("exec", *flags, "web", "true")
    assert (ended.status, requests.calls) == (2, [])
    assert said in ended.err


@pytest.mark.parametrize("words", [["exec", "web"], ["exec", "web", "--"]])
def test_a_command_is_needed(words: list[str], squib: Squib, requests: Recorder) -> None:
    ended = squib(*words)
    assert (ended.status, requests.calls) == (2, [])
    assert "hint: squib exec web COMMAND" in ended.err


def test_output_passes_byte_for_byte_on_its_own_stream(squib: Squib, engine: Served) -> None:
    engine.agent.scripts["x"] = ends(stdout=RAW, stderr=b"to err\n")
    ended = squib("exec", "web", "x")
    assert ended.out == RAW
    assert ended.err == "to err\n"


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ({"exit_code": 3}, 3),
        ({"exit_code": None, "signal": 9}, 137),
        ({"exit_code": None, "signal": 2}, 130),
        ({"exit_code": None, "signal": 9, "timed_out": True}, 124),
    ],
)
def test_the_status_is_that_of_the_command(end: dict[str, Any], status: int, squib: Squib, engine: Served) -> None:
    engine.agent.scripts["x"] = ends(end)
    assert squib("exec", "--timeout", "2", "web", "x").status == status


def test_out_of_memory_is_told(squib: Squib, engine: Served) -> None:
    engine.agent.scripts["x"] = ends({"exit_code": None, "signal": 9, "oom_killed": True})
    ended = squib("exec", "web", "x")
    assert (ended.status, "out of memory" in ended.err) == (137, True)
    engine.agent.scripts["x"] = ends({"exit_code": None, "signal": 9})
    assert "memory" not in squib("exec", "web", "x").err


def test_a_timeout_is_told(squib: Squib) -> None:
    ended = squib("exec", "--timeout", "10ms", "web", "sleep")
    assert ended.status == 124
    assert "timed out after 0.01 s" in ended.err


@pytest.mark.parametrize(
    ("words", "said", "status"),
    [(["web", "nosuch"], "nosuch: not found in PATH", 127), (["-u", "x", "web", "true"], "'x': no such user", 126)],
)
def test_what_cannot_be_started_has_the_status_of_its_error(
    words: list[str], said: str, status: int, squib: Squib, engine: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.agent, "users", {"root": "/root"})
    ended = squib("exec", *words)
    assert ended.status == status
    assert f"squib: {said}" in ended.err


def test_a_guest_that_is_lost_before_a_command_starts_is_an_error(
    squib: Squib, engine: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lose(*_: object) -> None:
        engine.agent.disconnect()

    monkeypatch.setattr(engine.agent, "_exec", lose)
    ended = squib("exec", "web", "true")
    assert (ended.status, ended.out) == (1, b"")
    assert "squib: " in ended.err


def test_a_vm_that_is_lost_is_an_error(squib: Squib, engine: Served) -> None:
    async def script(process: FakeProcess) -> int:
        await process.write(FrameKind.STDOUT, b"so far")
        async with process.changed:
            await process.changed.wait_for(lambda: process.readers[0].taken == process.total)
        engine.agent.disconnect()
        await asyncio.Event().wait()
        return 0

    engine.agent.scripts["x"] = script
    ended = squib("exec", "web", "x")
    assert (ended.status, ended.out) == (1, b"so far")
    assert "the VM ended, or was lost, while the command ran" in ended.err


def test_output_that_is_no_output_is_an_error(squib: Squib) -> None:
    ended = squib("exec", "web", "garbage")
    assert ended.status == 1
    assert "the guest sent a frame of kind 99" in ended.err


def test_json_is_one_object_with_the_output(squib: Squib, engine: Served) -> None:
    engine.agent.scripts["x"] = ends(4, stdout=b"out\n\xff", stderr=b"err\n")
    ended = squib("--json", "exec", "web", "x")
    assert ended.status == 4
    assert ended.json == {
        "vm": "web",
        "exit_code": 4,
        "signal": None,
        "timed_out": False,
        "oom_killed": False,
        "duration_s": 0.001,
        "stdout": "out\n�",
        "stdout_base64": "b3V0Cv8=",
        "stderr": "err\n",
        "truncated": False,
    }


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Our standard input is a pipe; this is its other end."""
    read_end, write_end = os.pipe()
    with os.fdopen(read_end) as file:
        monkeypatch.setattr("sys.stdin", file)
        yield write_end


def test_interactive_streams_standard_input(stdin: int, squib: Squib, requests: Recorder) -> None:
    os.write(stdin, RAW)
    os.close(stdin)
    assert squib("exec", "-i", "web", "cat").out == RAW
    assert requests.body("POST /vms/web/exec")["stdin"] is True


def test_an_idle_standard_input_does_not_hold_up_the_end(stdin: int, squib: Squib) -> None:
    assert squib("exec", "-i", "web", "exit", "5").status == 5
    os.close(stdin)


def test_without_interactive_standard_input_is_left_alone(stdin: int, squib: Squib, requests: Recorder) -> None:
    os.write(stdin, b"mine")
    os.close(stdin)
    squib("exec", "web", "cat")
    assert "stdin" not in requests.body("POST /vms/web/exec")
    assert not any("/stdin" in what for what in requests.made)


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set as soon as squib forwards Ctrl-C to the command."""
    forwards = threading.Event()
    interruptible = command._interruptible

    @contextlib.asynccontextmanager
    async def entered(running: Command) -> AsyncIterator[None]:
        async with interruptible(running):
            forwards.set()
            yield

    monkeypatch.setattr(command, "_interruptible", entered)
    return forwards


def test_ctrl_c_interrupts_the_command_and_its_status_counts(
    squib: Squib, engine: Served, requests: Recorder, forwards: threading.Event
) -> None:
    async def script(process: FakeProcess) -> int:
        assert await asyncio.to_thread(forwards.wait, 10)
        os.kill(os.getpid(), signal.SIGINT)
        assert await process.signalled.get() == signal.SIGINT
        await process.write(FrameKind.STDOUT, b"tidied up")
        return 7

    engine.agent.scripts["x"] = script
    ended = squib("exec", "web", "x")
    assert (ended.status, ended.out) == (7, b"tidied up")
    assert requests.body("POST /vms/web/processes/p1/signal") == {"signal": signal.SIGINT}
    assert engine.agent.killed == ["p1 signal 2"]


def test_a_second_ctrl_c_kills_it(squib: Squib, engine: Served, requests: Recorder, forwards: threading.Event) -> None:
    forever = Forever(signal.SIGINT)

    async def script(process: FakeProcess) -> int:
        assert await asyncio.to_thread(forwards.wait, 10)
        os.kill(os.getpid(), signal.SIGINT)
        assert await process.signalled.get() == signal.SIGINT
        return await forever(process)

    engine.agent.scripts["x"] = script
    assert squib("exec", "web", "x").status == 130
    assert forever.killed.wait(10)
    assert engine.agent.killed == ["p1 signal 2", "p1"]
    assert sum("signal" in what for what in requests.made) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_end_of_the_client_kills_the_command(number: signal.Signals, squib: Squib, engine: Served) -> None:
    script = engine.agent.scripts["x"] = Forever(number)
    assert squib("exec", "web", "x").status == 128 + number
    assert script.killed.wait(10)
    assert engine.agent.killed == ["p1"]


@pytest.mark.parametrize("prints", [True, False])
def test_a_command_whose_output_nobody_reads_is_killed(
    prints: bool, squib: Squib, engine: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = engine.agent.scripts["yes"] = Forever(prints=prints)
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as broken:
        monkeypatch.setattr("sys.stdout", broken)
        ended = squib("exec", "web", "yes")
    assert (ended.status, ended.err) == (128 + signal.SIGPIPE, "")
    assert script.killed.wait(10)
    assert engine.agent.killed == ["p1"]


def test_sudo_and_files_of_variables(squib: Squib, requests: Recorder, tmp_path: Path) -> None:
    for name, text in (("one", "A=1\nB=1\nC=1"), ("two", "B=2\nC=2")):
        (tmp_path / name).write_text(text)
    files = ["--env-file", str(tmp_path / "one"), "--env-file", str(tmp_path / "two")]
    squib("exec", "-e", "C=3", *files, "--sudo", "-u", "dev", "web", "env")
    assert requests.body("POST /vms/web/exec") == {
        "argv": ["env"],
        "user": "dev",
        "sudo": True,
        "env": {"A": "1", "B": "2", "C": "3"},
    }


@pytest.mark.parametrize("line", ["exec {} web true", "run {} -- true", "create {}"])
def test_a_bad_file_of_variables_is_refused(line: str, squib: Squib, requests: Recorder, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("A=1\n2=x\n")
    ended = squib(*line.format(f"--env-file {tmp_path / 'env'}").split())
    assert (ended.status, requests.calls) == (2, [])
    assert "env, line 2: invalid environment variable '2'" in ended.err
