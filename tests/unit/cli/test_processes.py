"""``ps``, ``kill``, ``attach`` and commands of the background."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest

from squib.errors import AgentUnreachable
from squib.protocol.frames import FrameKind, encode
from tests.fakes.api import TERMINAL, FakeAPI, ends, make_process
from tests.unit.cli.conftest import Squib


@pytest.fixture(autouse=True)
def web(api: FakeAPI) -> None:
    api.add("vm-1", name="web")


def has(api: FakeAPI, process_id: str, **fields: object) -> None:
    api.processes[process_id] = make_process(process_id, **fields)


def test_ps_lists_what_runs_and_what_has_ended(squib: Squib, api: FakeAPI) -> None:
    has(api, "p1", user="dev", argv=["sh", "-c", "echo $HOME"])
    has(api, "p2", background=False, readers=1)
    has(api, "p3", readers=1, **TERMINAL)
    has(api, "p4", **TERMINAL)
    has(api, "p5", running=False, exit_code=3)
    has(api, "p6", running=False, exit_code=137, signal=9)
    has(api, "p7", running=False, exit_code=124, signal=9, timed_out=True)
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


def test_ps_shows_long_commands_in_full_only_as_json(squib: Squib, api: FakeAPI) -> None:
    argv = ["sh", "-c", "x" * 1000, "\udc80"]
    has(api, "p1", argv=argv)
    line = squib("ps", "web").text.splitlines()[1]
    assert len(line) < 130 and line.endswith("…")
    assert squib("ps", "--json", "web").json[0]["argv"] == argv


def test_kill_ends_all_that_the_command_started(squib: Squib, api: FakeAPI) -> None:
    has(api, "p1")
    has(api, "p2")
    ended = squib("kill", "web", "p1", "p2")
    assert (ended.status, ended.text) == (0, "p1\np2\n")
    assert api.made == ["DELETE /vms/web/processes/p1", "DELETE /vms/web/processes/p2"]


@pytest.mark.parametrize("flags", [["-s", "TERM"], ["--signal", "15"], ["--signal=sigterm"]])
def test_kill_sends_another_signal(flags: list[str], squib: Squib, api: FakeAPI) -> None:
    has(api, "p4")
    ended = squib("kill", "--json", *flags, "web", "p4")
    assert ended.json == [{"vm": "web", "id": "p4", "signal": 15}]
    assert api.body("POST /vms/web/processes/p4/signal") == {"signal": 15}
    assert list(api.processes) == ["p4"]


def test_one_that_is_not_there_does_not_keep_the_others_from_being_killed(squib: Squib, api: FakeAPI) -> None:
    has(api, "p2")
    ended = squib("kill", "web", "p9", "p2")
    assert (ended.status, ended.text) == (1, "p2\n")
    assert "no process p9" in ended.err


@pytest.mark.parametrize("words", [["web"], ["web", "../x"], ["web", "p1", "-s", "BOGUS"], ["a/b", "p1"]])
def test_kill_refuses_what_it_does_not_understand(words: list[str], squib: Squib, api: FakeAPI) -> None:
    has(api, "p1")
    assert squib("kill", *words).status == 2
    assert api.calls == []


@pytest.mark.parametrize("flag", ["-d", "--detach"])
def test_exec_in_the_background_prints_the_id(flag: str, squib: Squib, api: FakeAPI) -> None:
    ended = squib("exec", flag, "web", "make", "-j4")
    assert (ended.status, ended.text) == (0, "p1\n")
    assert api.body("POST /vms/web/exec") == {"argv": ["make", "-j4"], "background": True}
    assert squib("exec", "--json", flag, "web", "x").json == {"vm": "web", "id": "p1"}


@pytest.mark.parametrize("flags", ["-di", "-dt", "-dit"])
def test_the_background_has_no_input(flags: str, squib: Squib, api: FakeAPI) -> None:
    ended = squib("exec", flags, "web", "sh")
    assert (ended.status, api.calls) == (2, [])
    assert "-d cannot be used together with -i or -t" in ended.err


def test_attach_follows_a_command_of_the_background_to_its_end(squib: Squib, api: FakeAPI) -> None:
    has(api, "p3")
    api.script = ends(5, stdout=b"\x00out\xff", stderr=b"err\n")
    ended = squib("attach", "web", "p3")
    assert (ended.status, ended.out, ended.err) == (5, b"\x00out\xff", "err\n")


def test_ctrl_c_leaves_a_command_of_the_background_alone(squib: Squib, api: FakeAPI) -> None:
    async def script(api: FakeAPI) -> AsyncIterator[bytes]:
        yield encode(FrameKind.STDOUT, b"x")
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()

    has(api, "p3")
    api.script = script
    ended = squib("attach", "web", "p3")
    assert (ended.status, ended.out) == (130, b"x")
    assert "reattach with: squib attach web p3" in ended.err
    assert not any("signal" in what or "DELETE" in what for what in api.made)


@pytest.mark.parametrize(
    ("terminals", "said"),
    [
        ({}, "VM web has no terminal\nhint: squib connect web"),
        ({"p1": {"running": False, "exit_code": 0}}, "VM web has no terminal"),
        ({"p1": {"readers": 1}, "p2": {"readers": 2}}, "in use: p1 (-bash), p2 (-bash)\nhint: squib attach web p2"),
    ],
)
def test_attach_needs_a_terminal_that_is_detached(
    terminals: dict[str, dict[str, object]], said: str, squib: Squib, api: FakeAPI
) -> None:
    has(api, "p0")
    for process_id, fields in terminals.items():
        has(api, process_id, **TERMINAL, **fields)
    ended = squib("attach", "web")
    assert ended.status == 1
    assert said in ended.err


def test_attach_finds_the_newest_terminal_that_is_detached(squib: Squib, api: FakeAPI) -> None:
    for process_id, readers in (("p1", 0), ("p2", 0), ("p3", 1)):
        has(api, process_id, readers=readers, **TERMINAL)
    assert "standard input is not a terminal" in squib("attach", "web").err
    assert api.made == ["GET /vms/web/processes", "GET /vms/web/processes/p2"]


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
def test_a_terminal_is_refused_where_there_is_none(line: str, hint: str, squib: Squib, api: FakeAPI) -> None:
    ended = squib(*line.split())
    assert (ended.status, api.calls) == (2, [])
    assert f"standard input is not a terminal\nhint: {hint}" in ended.err


@pytest.mark.parametrize("line", ["connect web", "exec -t web sh", "run -t -- sh", "create --connect", "attach web"])
def test_a_terminal_has_no_json(line: str, squib: Squib, api: FakeAPI) -> None:
    ended = squib("--json", *line.split())
    assert (ended.status, api.calls) == (2, [])
    assert "--json" in ended.error["message"]


@pytest.mark.parametrize("line", ["connect --detach-keys xx web", "exec --detach-keys ctrl-1 web sh"])
def test_keys_that_are_none_are_refused(line: str, squib: Squib, api: FakeAPI) -> None:
    ended = squib(*line.split())
    assert (ended.status, api.calls) == (2, [])
    assert "--detach-keys" in ended.err


def test_a_vm_that_is_lost_is_an_error_of_ps(squib: Squib, api: FakeAPI) -> None:
    api.fails["GET /vms/web/processes"] = AgentUnreachable("gone")
    ended = squib("ps", "web")
    assert (ended.status, ended.out) == (1, b"")
