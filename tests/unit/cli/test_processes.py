"""``ps``, ``kill``, ``attach`` and commands of the background."""

import asyncio
import os
import signal
from typing import Any

import pytest

from squib.cli.actions import command
from squib.protocol.frames import FrameKind
from tests.fakes.processes import FakeProcess
from tests.fakes.recorder import Recorder
from tests.fakes.served import Served
from tests.unit.cli.conftest import Squib

TERMINAL = {"pty": {"rows": 24, "cols": 80}, "argv": ["-bash"]}


def has(engine: Served, process_id: str, **fields: Any) -> None:
    """Give ``web`` a process. ``exit`` is how it ended."""
    spec = {"argv": ["sleep", "9"], "background": True} | {name: fields[name] for name in SPEC & fields.keys()}
    process = engine.agent.processes[process_id] = FakeProcess(process_id, 312, spec, {})
    process.pty, process.watchers = fields.get("pty"), fields.get("readers", 0)
    if "exit" in fields:
        process.exit = {"exit_code": None, "signal": None, "timed_out": False, "duration_ms": 1} | fields["exit"]


SPEC = {"argv", "background", "user"}


def test_ps_lists_what_runs_and_what_has_ended(squib: Squib, engine: Served) -> None:
    has(engine, "p1", user="dev", argv=["sh", "-c", "echo $HOME"])
    has(engine, "p2", background=False, readers=1)
    has(engine, "p3", readers=1, **TERMINAL)
    has(engine, "p4", **TERMINAL)
    has(engine, "p5", exit={"exit_code": 3})
    has(engine, "p6", exit={"signal": 9})
    has(engine, "p7", exit={"signal": 9, "timed_out": True})
    rows = [line.split() for line in squib("ps", "web").text.splitlines()]
    assert rows[0] == ["ID", "PID", "USER", "STARTED", "MODE", "STATUS", "COMMAND"]
    assert [(row[0], row[1], row[2], row[4], *row[5:]) for row in rows[1:]] == [
        ("p1", "312", "dev", "ago", "background", "running", "sh", "-c", "'echo", "$HOME'"),
        ("p2", "312", "root", "ago", "foreground", "running", "sleep", "9"),
        ("p3", "312", "root", "ago", "terminal", "running", "-bash"),
        ("p4", "312", "root", "ago", "terminal,", "detached", "running", "-bash"),
        ("p5", "312", "root", "ago", "background", "exited", "3", "sleep", "9"),
        ("p6", "312", "root", "ago", "background", "signal", "9", "sleep", "9"),
        ("p7", "312", "root", "ago", "background", "timed", "out", "sleep", "9"),
    ]


def test_ps_shows_long_commands_in_full_only_as_json(squib: Squib, engine: Served) -> None:
    argv = ["sh", "-c", "x" * 1000, "\udc80"]
    has(engine, "p1", argv=argv)
    line = squib("ps", "web").text.splitlines()[1]
    assert len(line) < 130 and line.endswith("…")
    assert squib("ps", "--json", "web").json[0]["argv"] == argv


def test_kill_ends_all_that_the_command_started(squib: Squib, engine: Served, requests: Recorder) -> None:
    has(engine, "p1")
    has(engine, "p2")
    ended = squib("kill", "web", "p1", "p2")
    assert (ended.status, ended.text) == (0, "p1\np2\n")
    assert requests.made == ["DELETE /vms/web/processes/p1", "DELETE /vms/web/processes/p2"]
    assert (engine.agent.killed, engine.agent.processes) == (["p1", "p2"], {})


@pytest.mark.parametrize("flags", [["-s", "TERM"], ["--signal", "15"], ["--signal=sigterm"]])
def test_kill_sends_another_signal(flags: list[str], squib: Squib, engine: Served, requests: Recorder) -> None:
    has(engine, "p4")
    ended = squib("kill", "--json", *flags, "web", "p4")
    assert ended.json == [{"vm": "web", "id": "p4", "signal": 15}]
    assert requests.body("POST /vms/web/processes/p4/signal") == {"signal": 15}
    assert list(engine.agent.processes) == ["p4"]


def test_one_that_is_not_there_does_not_keep_the_others_from_being_killed(squib: Squib, engine: Served) -> None:
    has(engine, "p2")
    ended = squib("kill", "web", "p9", "p2")
    assert (ended.status, ended.text) == (1, "p2\n")
    assert '"p9": no such process' in ended.err


@pytest.mark.parametrize("words", [["web"], ["web", "../x"], ["web", "p1", "-s", "BOGUS"], ["a/b", "p1"]])
def test_kill_refuses_what_it_does_not_understand(
    words: list[str], squib: Squib, engine: Served, requests: Recorder
) -> None:
    has(engine, "p1")
    assert squib("kill", *words).status == 2
    assert requests.calls == []


@pytest.mark.parametrize("flag", ["-d", "--detach"])
def test_exec_in_the_background_prints_the_id(flag: str, squib: Squib, requests: Recorder) -> None:
    ended = squib("exec", flag, "web", "sleep", "-j4")
    assert (ended.status, ended.text) == (0, "p1\n")
    assert requests.body("POST /vms/web/exec") == {"argv": ["sleep", "-j4"], "background": True}
    assert squib("exec", "--json", flag, "web", "sleep").json == {"vm": "web", "id": "p2"}


@pytest.mark.parametrize("flags", ["-di", "-dt", "-dit"])
def test_the_background_has_no_input(flags: str, squib: Squib, requests: Recorder) -> None:
    ended = squib("exec", flags, "web", "sh")
    assert (ended.status, requests.calls) == (2, [])
    assert "-d cannot be used together with -i or -t" in ended.err


def test_attach_follows_a_command_of_the_background_to_its_end(squib: Squib, engine: Served) -> None:
    async def script(process: FakeProcess) -> int:
        await process.write(FrameKind.STDOUT, b"\x00out\xff")
        await process.write(FrameKind.STDERR, b"err\n")
        return 5

    engine.agent.scripts["x"] = script
    squib("exec", "-d", "web", "x")
    ended = squib("attach", "web", "p1")
    assert (ended.status, ended.out, ended.err) == (5, b"\x00out\xff", "err\n")


def test_ctrl_c_leaves_a_command_of_the_background_alone(
    squib: Squib, engine: Served, requests: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def script(process: FakeProcess) -> int:
        await process.write(FrameKind.STDOUT, b"x")
        await asyncio.Event().wait()
        return 0

    write_all = command.write_all

    async def write_and_interrupt(fd: int, data: bytes) -> None:
        await write_all(fd, data)
        os.kill(os.getpid(), signal.SIGINT)

    engine.agent.scripts["x"] = script
    squib("exec", "-d", "web", "x")
    monkeypatch.setattr(command, "write_all", write_and_interrupt)
    ended = squib("attach", "web", "p1")
    assert (ended.status, ended.out) == (130, b"x")
    assert "reattach with: squib attach web p1" in ended.err
    assert not any("signal" in what or "DELETE" in what for what in requests.made)
    assert (engine.agent.killed, engine.agent.processes["p1"].exit) == ([], None)


@pytest.mark.parametrize(
    ("terminals", "said"),
    [
        ({}, "VM web has no terminal\nhint: squib connect web"),
        ({"p1": {"exit": {"exit_code": 0}}}, "VM web has no terminal"),
        ({"p1": {"readers": 1}, "p2": {"readers": 2}}, "in use: p1 (-bash), p2 (-bash)\nhint: squib attach web p2"),
    ],
)
def test_attach_needs_a_terminal_that_is_detached(
    terminals: dict[str, dict[str, object]], said: str, squib: Squib, engine: Served
) -> None:
    has(engine, "p0")
    for process_id, fields in terminals.items():
        has(engine, process_id, **TERMINAL, **fields)
    ended = squib("attach", "web")
    assert ended.status == 1
    assert said in ended.err


def test_attach_finds_the_newest_terminal_that_is_detached(squib: Squib, engine: Served, requests: Recorder) -> None:
    for process_id, readers in (("p1", 0), ("p2", 0), ("p3", 1)):
        has(engine, process_id, readers=readers, **TERMINAL)
    assert "standard input is not a terminal" in squib("attach", "web").err
    assert requests.made == ["GET /vms/web/processes", "GET /vms/web/processes/p2"]


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("connect web", "squib exec -i web sh"),
        ("exec -t web sh", "squib exec -i web"),
        ("exec -it web sh", "squib exec -i web"),
        ("run -t -- sh", "squib run -i"),
        ("create --connect", "squib create"),
    ],
)
def test_a_terminal_is_refused_where_there_is_none(line: str, hint: str, squib: Squib, requests: Recorder) -> None:
    ended = squib(*line.split())
    assert (ended.status, requests.calls) == (2, [])
    assert f"standard input is not a terminal\nhint: {hint}" in ended.err


@pytest.mark.parametrize("line", ["connect web", "exec -t web sh", "run -t -- sh", "create --connect", "attach web"])
def test_a_terminal_has_no_json(line: str, squib: Squib, requests: Recorder) -> None:
    ended = squib("--json", *line.split())
    assert (ended.status, requests.calls) == (2, [])
    assert "--json" in ended.error["message"]


@pytest.mark.parametrize("line", ["connect --detach-keys xx web", "exec --detach-keys ctrl-1 web sh"])
def test_keys_that_are_none_are_refused(line: str, squib: Squib, requests: Recorder) -> None:
    ended = squib(*line.split())
    assert (ended.status, requests.calls) == (2, [])
    assert "--detach-keys" in ended.err


def test_a_vm_that_is_lost_is_an_error_of_ps(squib: Squib, engine: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async def lose(*_: object) -> None:
        engine.agent.disconnect()

    monkeypatch.setattr(engine.agent, "_processes", lose)
    ended = squib("ps", "web")
    assert (ended.status, ended.out) == (1, b"")
    assert "squib: " in ended.err
