"""``exec``: arguments, streams, signals and the status."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from squib.errors import AgentUnreachable, CommandNotFound, NoSuchUser, to_wire
from squib.protocol.frames import FrameKind, encode, encode_json
from tests.fakes.api import FakeAPI, ends, exit_frame
from tests.unit.cli.conftest import Squib

RAW = bytes(range(256)) * 3


@pytest.fixture(autouse=True)
def web(api: FakeAPI) -> None:
    api.add("vm-1", name="web")


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
def test_everything_after_the_vm_belongs_to_the_command(line: str, argv: list[str], squib: Squib, api: FakeAPI) -> None:
    assert squib(*line.split()).status == 0
    assert api.body("POST /vms/web/exec")["argv"] == argv


def test_arguments_may_hold_any_bytes(squib: Squib, api: FakeAPI) -> None:
    squib("exec", "web", "printf", os.fsdecode(b"a\x80 \n$(x)"))
    assert api.body("POST /vms/web/exec")["argv"] == ["printf", "a\udc80 \n$(x)"]


def test_flags_before_the_vm_are_ours(squib: Squib, api: FakeAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAKEN", "from here")
    squib("exec", "-u", "nobody", "-w", "/tmp", "-e", "A=1=2", "--env", "TAKEN", "--timeout", "5m", "web", "true")
    assert api.body("POST /vms/web/exec") == {
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
        (["--timeout", "0"], "--timeout: '0'"),
        (["-e", "1A=x"], "'1A'"),
        (["-e", "NOT_SET_HERE"], "--env: 'NOT_SET_HERE'"),
    ],
)
def test_bad_values_are_refused_by_the_name_of_their_flag(
    flags: list[str], said: str, squib: Squib, api: FakeAPI
) -> None:
    ended = squib("exec", *flags, "web", "true")
    assert (ended.status, api.calls) == (2, [])
    assert said in ended.err


@pytest.mark.parametrize("words", [["exec", "web"], ["exec", "web", "--"]])
def test_a_command_is_needed(words: list[str], squib: Squib, api: FakeAPI) -> None:
    ended = squib(*words)
    assert (ended.status, api.calls) == (2, [])
    assert "hint: squib exec web COMMAND" in ended.err


def test_output_passes_byte_for_byte_on_its_own_stream(squib: Squib, api: FakeAPI) -> None:
    api.script = ends(stdout=RAW, stderr=b"to err\n")
    ended = squib("exec", "web", "x")
    assert ended.out == RAW
    assert ended.err == "to err\n"


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ({"code": 3}, 3),
        ({"code": None, "signal": 9}, 137),
        ({"code": None, "signal": 2}, 130),
        ({"code": None, "signal": 9, "timed_out": True}, 124),
    ],
)
def test_the_status_is_that_of_the_command(end: dict[str, int | None], status: int, squib: Squib, api: FakeAPI) -> None:
    api.script = ends(**end)  # type: ignore[arg-type]
    assert squib("exec", "--timeout", "2", "web", "x").status == status


def test_a_timeout_is_told(squib: Squib, api: FakeAPI) -> None:
    api.script = ends(None, signal=9, timed_out=True)
    assert "timed out after 2 s" in squib("exec", "--timeout", "2s", "web", "x").err


@pytest.mark.parametrize(
    ("error", "status"),
    [(CommandNotFound("x: not found in PATH"), 127), (NoSuchUser("no user x"), 126), (AgentUnreachable("gone"), 1)],
)
def test_what_cannot_be_started_has_the_status_of_its_error(
    error: CommandNotFound, status: int, squib: Squib, api: FakeAPI
) -> None:
    api.fails["POST /vms/web/exec"] = error
    ended = squib("exec", "web", "x")
    assert ended.status == status
    assert f"squib: {error.message}" in ended.err


def test_a_vm_that_is_lost_is_an_error(squib: Squib, api: FakeAPI) -> None:
    async def script(api: FakeAPI) -> AsyncIterator[bytes]:
        yield encode(FrameKind.STDOUT, b"so far")
        yield encode_json(FrameKind.ERROR, to_wire(AgentUnreachable("the VM ended")))

    api.script = script
    ended = squib("exec", "web", "x")
    assert (ended.status, ended.out) == (1, b"so far")
    assert "the VM ended" in ended.err


def test_output_that_is_no_output_is_an_error(squib: Squib, api: FakeAPI) -> None:
    async def script(api: FakeAPI) -> AsyncIterator[bytes]:
        yield b"\xff" * 100

    api.script = script
    ended = squib("exec", "web", "x")
    assert ended.status == 1
    assert "invalid command output from the guest" in ended.err


def test_json_is_one_object_with_the_output(squib: Squib, api: FakeAPI) -> None:
    api.script = ends(4, stdout=b"out\n\xff", stderr=b"err\n")
    ended = squib("--json", "exec", "web", "x")
    assert ended.status == 4
    assert ended.json == {
        "vm": "web",
        "exit_code": 4,
        "signal": None,
        "timed_out": False,
        "duration_s": 0.012,
        "stdout": "out\n�",
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


async def until_stdin_is_closed(api: FakeAPI) -> AsyncIterator[bytes]:
    await api.stdin_closed.wait()
    yield encode(FrameKind.STDOUT, bytes(api.stdin))
    yield exit_frame()


def test_interactive_streams_standard_input(stdin: int, squib: Squib, api: FakeAPI) -> None:
    os.write(stdin, RAW)
    os.close(stdin)
    api.script = until_stdin_is_closed
    assert squib("exec", "-i", "web", "cat").out == RAW
    assert api.body("POST /vms/web/exec")["stdin"] is True


def test_an_idle_standard_input_does_not_hold_up_the_end(stdin: int, squib: Squib, api: FakeAPI) -> None:
    api.script = ends(5)
    assert squib("exec", "-i", "web", "x").status == 5
    os.close(stdin)


def test_without_interactive_standard_input_is_left_alone(stdin: int, squib: Squib, api: FakeAPI) -> None:
    os.write(stdin, b"mine")
    os.close(stdin)
    squib("exec", "web", "cat")
    assert "stdin" not in api.body("POST /vms/web/exec")
    assert not any("/stdin" in what for what in api.made)


def test_ctrl_c_interrupts_the_command_and_its_status_counts(squib: Squib, api: FakeAPI) -> None:
    async def script(api: FakeAPI) -> AsyncIterator[bytes]:
        os.kill(os.getpid(), signal.SIGINT)
        await api.signalled.wait()
        yield encode(FrameKind.STDOUT, b"tidied up")
        yield exit_frame(7)

    api.script = script
    ended = squib("exec", "web", "x")
    assert (ended.status, ended.out) == (7, b"tidied up")
    assert api.body("POST /vms/web/processes/p1/signal") == {"signal": signal.SIGINT}
    assert not api.killed


def test_a_second_ctrl_c_kills_it(squib: Squib, api: FakeAPI) -> None:
    async def script(api: FakeAPI) -> AsyncIterator[bytes]:
        os.kill(os.getpid(), signal.SIGINT)
        await api.signalled.wait()
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()
        yield b""

    api.script = script
    assert squib("exec", "web", "x").status == 130
    assert api.killed
    assert sum("signal" in what for what in api.made) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_end_of_the_client_kills_the_command(number: signal.Signals, squib: Squib, api: FakeAPI) -> None:
    async def script(api: FakeAPI) -> AsyncIterator[bytes]:
        os.kill(os.getpid(), number)
        await asyncio.Event().wait()
        yield b""

    api.script = script
    assert squib("exec", "web", "x").status == 128 + number
    assert api.killed


@pytest.mark.parametrize("prints", [True, False])
def test_a_command_whose_output_nobody_reads_is_killed(
    prints: bool, squib: Squib, api: FakeAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def script(api: FakeAPI) -> AsyncIterator[bytes]:
        while prints:
            yield encode(FrameKind.STDOUT, b"y\n")
            await asyncio.sleep(0)
        await asyncio.Event().wait()

    api.script = script
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as broken:
        monkeypatch.setattr("sys.stdout", broken)
        ended = squib("exec", "web", "yes")
    assert (ended.status, ended.err) == (128 + signal.SIGPIPE, "")
    assert api.killed


def test_sudo_and_files_of_variables(squib: Squib, api: FakeAPI, tmp_path: Path) -> None:
    for name, text in (("one", "A=1\nB=1\nC=1"), ("two", "B=2\nC=2")):
        (tmp_path / name).write_text(text)
    files = ["--env-file", str(tmp_path / "one"), "--env-file", str(tmp_path / "two")]
    squib("exec", "-e", "C=3", *files, "--sudo", "-u", "dev", "web", "id")
    assert api.body("POST /vms/web/exec") == {
        "argv": ["id"],
        "user": "dev",
        "sudo": True,
        "env": {"A": "1", "B": "2", "C": "3"},
    }


@pytest.mark.parametrize("line", ["exec {} web true", "run {} -- true", "create {}"])
def test_a_bad_file_of_variables_is_refused(line: str, squib: Squib, api: FakeAPI, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("A=1\n2=x\n")
    ended = squib(*line.format(f"--env-file {tmp_path / 'env'}").split())
    assert (ended.status, api.calls) == (2, [])
    assert "env, line 2: invalid environment variable '2'" in ended.err
