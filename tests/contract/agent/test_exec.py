"""``POST /v1/exec``: what a request may say, and the frames that answer it."""

import asyncio
import json
import os
from typing import Any

import pytest

from tests.contract.agent.frames import STDERR, STDOUT, parse_whole, run, start, start_background
from tests.contract.agent.implementations import Implementation

pytestmark = pytest.mark.anyio
BAD_REQUEST = (400, "bad_request")


async def refused(agent: Implementation, **spec: Any) -> tuple[int, str]:
    async with agent.session() as session:
        return (await session.request("POST", "/v1/exec", spec)).error


async def test_a_command_is_answered_with_frames(agent: Implementation) -> None:
    async with agent.session() as session:
        frames = await run(session, argv=["echo", "a", "\udcff", "é"])
        assert (frames.stdout, frames.stderr) == (b"a \xff \xc3\xa9\n", b"")
        assert frames.started["id"].startswith("p")
        assert frames.started["pid"] > 0
        assert (frames.exit["exit_code"], frames.exit["signal"], frames.exit["timed_out"]) == (0, None, False)
        assert isinstance(frames.exit["duration_ms"], int)
        frames = await run(session, argv=["err", "b"])
        assert (frames.stdout, frames.stderr) == (b"", b"b\n")
        assert [kind for kind, _, _ in frames.output] == [STDERR]


@pytest.mark.parametrize(("argv", "code"), [(["true"], 0), (["false"], 1), (["exit", "3"], 3), (["exit", "255"], 255)])
async def test_the_exit_code(agent: Implementation, argv: list[str], code: int) -> None:
    async with agent.session() as session:
        frames = await run(session, argv=argv)
        assert (frames.exit["exit_code"], frames.exit["signal"]) == (code, None)


async def test_output_larger_than_every_buffer_is_complete(agent: Implementation) -> None:
    async with agent.session() as session:
        frames = await run(session, argv=["flood", "700"])
        assert frames.stdout == b"".join(b"%01023d\n" % number for number in range(700))
        assert {kind for kind, _, _ in frames.output} == {STDOUT}


async def test_a_shell_command(agent: Implementation) -> None:
    async with agent.session() as session:
        assert (await run(session, **{"shell": "echo 'a  b'"})).stdout == b"a  b\n"
        assert (await run(session, **{"shell": "exit 4"})).exit["exit_code"] == 4


@pytest.mark.parametrize(
    "spec",
    [
        {}, {"argv": []}, {"argv": ["true"], "shell": "true"}, {"argv": ["true"], "login": True}, {"argv": "true"},
        {"shell": "true", "login": True}, {"argv": [1]}, {"argv": ["a\0b"]}, {"shell": 1}, {"shell": "a\0"},
        {"argv": ["\ud800"]}, {"argv": ["true"], "env": []}, {"argv": ["true"], "env": {"": ""}},
        {"argv": ["true"], "env": {"A=B": ""}}, {"argv": ["true"], "env": {"A": 1}},
        {"argv": ["true"], "cwd": 1}, {"argv": ["true"], "user": 0}, {"argv": ["true"], "stdin": 1},
        {"argv": ["true"], "timeout_ms": 0}, {"argv": ["true"], "timeout_ms": -1},
        {"argv": ["true"], "timeout_ms": "1"}, {"argv": ["true"], "restore_signal": 0},
        {"argv": ["true"], "restore_signal": 65}, {"argv": ["true"], "restore_signal": "USR1"},
        {"argv": ["true"], "background": "yes"}, {"argv": ["true"], "pty": {"rows": 0, "cols": 80}},
        {"argv": ["true"], "pty": {"rows": 24, "cols": 65_536}}, {"argv": ["true"], "pty": {"rows": 24}},
        {"argv": ["true"], "pty": True},
    ],
    ids=ascii,
)  # fmt: skip
async def test_a_wrong_request_starts_nothing(agent: Implementation, spec: dict[str, Any]) -> None:
    assert await refused(agent, **spec) == BAD_REQUEST
    async with agent.session() as session:
        assert (await session.request("GET", "/v1/processes")).json() == {"processes": []}


async def test_a_program_that_does_not_exist(agent: Implementation) -> None:
    for program in ("nosuch", "/nosuch", str(agent.folder / "nosuch"), ""):
        assert await refused(agent, argv=[program]) == (422, "command_not_found")


async def test_a_program_that_cannot_be_executed(agent: Implementation) -> None:
    (agent.folder / "text").write_text("no program")
    (agent.folder / "fifo").mkdir()
    for program in (agent.folder / "text", agent.folder, agent.folder / "fifo"):
        assert await refused(agent, argv=[str(program)]) == (422, "not_executable")


@pytest.mark.parametrize(
    "spec",
    [
        {"argv": ["true", "x" * (128 << 10)]},
        {"argv": ["true"] + ["x" * 65_536] * 33},
        {"argv": ["true"], "env": {"X": "x" * (128 << 10)}},
    ],
    ids=["one argument", "all arguments", "one variable"],
)
async def test_more_arguments_than_linux_takes(agent: Implementation, spec: dict[str, Any]) -> None:
    assert await refused(agent, **spec) == (422, "arguments_too_long")


@pytest.mark.parametrize(
    "argv",
    [["x" * ((128 << 10) - 1)], ["x" * 65_536] * 30, ["\x01" * 65_536] * 30],
    ids=["one argument", "all arguments", "escaped"],
)
async def test_the_arguments_that_linux_takes(agent: Implementation, argv: list[str]) -> None:
    async with agent.session() as session:
        assert (await run(session, argv=["true", *argv])).exit["exit_code"] == 0


async def test_a_file_that_is_not_a_program(real: Implementation) -> None:
    for content in (b"\x00no program", b"#!/nosuch/interpreter\n"):
        (real.folder / "text").write_bytes(content)
        (real.folder / "text").chmod(0o755)
        assert await refused(real, argv=[str(real.folder / "text")]) == (422, "not_executable")


async def test_the_working_directory(agent: Implementation) -> None:
    async with agent.session() as session:
        assert (await run(session, argv=["pwd"])).stdout == os.fsencode(agent.home) + b"\n"
        assert (await run(session, argv=["pwd"], cwd=str(agent.folder))).stdout == os.fsencode(agent.folder) + b"\n"
        assert (await run(session, argv=["pwd"], user="4711")).stdout == b"/\n"


async def test_a_working_directory_that_cannot_be_entered(agent: Implementation) -> None:
    (agent.folder / "file").touch()
    (agent.home / "sub").mkdir()
    async with agent.session() as session:
        assert (await run(session, argv=["pwd"], cwd="sub")).stdout == os.fsencode(agent.home / "sub") + b"\n"
    for cwd in (agent.folder / "nosuch", agent.folder / "file"):
        assert await refused(agent, argv=["true"], cwd=str(cwd)) == (422, "bad_cwd")


async def test_the_environment(agent: Implementation) -> None:
    async with agent.session() as session:
        await session.request("POST", "/v1/setup", {"env": agent.env | {"A": "setup", "B": "setup"}})
        seen = json.loads((await run(session, argv=["env"], env={"B": "request", "C": "\udcff"}, user="me")).stdout)
        home = str(agent.home)
        expected = agent.env | {"A": "setup", "B": "request", "C": "\udcff", "HOME": home}
        assert seen.pop("SHELL").startswith("/")
        assert seen == expected | {"USER": "me", "LOGNAME": "me"}


async def test_sudo_runs_as_root_on_behalf_of_a_user(agent: Implementation) -> None:
    async with agent.session() as session:
        seen = json.loads((await run(session, argv=["env"], user="me", sudo=True)).stdout)
        assert (seen["USER"], seen["LOGNAME"], seen["SUDO_USER"]) == ("root", "root", "me")
        assert (seen["SUDO_UID"], seen["SUDO_GID"]) == (str(os.getuid()), str(os.getgid()))


@pytest.mark.parametrize("user", ["nosuch", "me:nosuch", "-1", "4294967295", "me:", ":"])
async def test_a_user_who_does_not_exist(agent: Implementation, user: str) -> None:
    assert await refused(agent, argv=["true"], user=user) == (422, "no_such_user")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can start commands as somebody else")
async def test_a_command_has_the_identity_of_its_user(real: Implementation) -> None:
    script = "id -u; id -g; id -G; pwd"
    for folder in (real.folder.parent, *real.folder.parent.parents):
        if folder.stat().st_uid == 0 and folder.name.startswith(("pytest", "test", "popen")):
            folder.chmod(0o755)
    async with real.session() as session:
        env = {"PATH": os.defpath}
        assert (await run(session, shell=script, env=env, user="nobody")).stdout == b"65534\n65534\n65534 4242\n/\n"
        assert (await run(session, shell=script, env=env, user="nobody:root")).stdout == b"65534\n0\n0 4242\n/\n"
        assert (await run(session, shell=script, env=env, user="4711:4712")).stdout == b"4711\n4712\n4712\n/\n"
        assert (await run(session, shell=script, env=env, user="nobody", sudo=True, cwd="/")).stdout[:4] == b"0\n0\n"


async def test_without_stdin_a_command_reads_nothing(agent: Implementation) -> None:
    async with agent.session() as session:
        frames = await run(session, argv=["cat"])
        assert (frames.stdout, frames.exit["exit_code"]) == (b"", 0)


async def test_a_timeout_kills_the_command(agent: Implementation) -> None:
    async with agent.session() as session:
        frames = await run(session, argv=["sleep"], timeout_ms=30)
        assert (frames.exit["exit_code"], frames.exit["signal"], frames.exit["timed_out"]) == (None, 9, True)
        frames = await run(session, argv=["true"], timeout_ms=60_000)
        assert (frames.exit["exit_code"], frames.exit["timed_out"]) == (0, False)


async def test_a_cancelled_request_kills_a_foreground_command_and_forgets_it(agent: Implementation) -> None:
    async with agent.session() as session:
        process, stream, _ = await start(session, argv=["sleep"])
        session.cancel(stream)
        async with asyncio.timeout(10):
            while (await session.request("GET", f"/v1/processes/{process}")).status != 404:
                await asyncio.sleep(0.001)


async def test_a_cancelled_request_leaves_a_background_command_alone(agent: Implementation) -> None:
    async with agent.session() as session:
        process = await start_background(session, argv=["sleep"])
        described = (await session.request("GET", f"/v1/processes/{process}")).json()
        assert (described["exit"], described["background"]) == (None, True)


async def test_a_command_in_a_terminal(agent: Implementation) -> None:
    async with agent.session() as session:
        process, _, answer = await start(session, argv=["tty"], pty={"rows": 24, "cols": 80})
        await session.read_until(answer, b"$ ")
        path = f"/v1/processes/{process}"
        assert (await session.request("POST", f"{path}/stdin", b"exit 7\r")).json() == {"written": 7}
        await session.finish(answer)
        frames = parse_whole(answer)
        assert (frames.exit["exit_code"], frames.stderr) == (7, b"")
        assert frames.stdout.startswith(b"$ exit 7\r")
        seen = await run(session, argv=["env"], pty={"rows": 1, "cols": 65_535})
        assert json.loads(seen.stdout)["TERM"] == "xterm-256color"


async def test_a_login_shell(agent: Implementation) -> None:
    async with agent.session() as session:
        process, _, answer = await start(session, login=True, user="me", pty={"rows": 24, "cols": 80})
        await session.read_until(answer, b"$ ")
        described = (await session.request("GET", f"/v1/processes/{process}")).json()
        assert [word.startswith("-") for word in described["argv"]] == [True]
        await session.request("POST", f"/v1/processes/{process}/stdin?close=1")
        await session.finish(answer)
        assert parse_whole(answer).exit["exit_code"] == 0


async def test_a_command_killed_by_a_signal(agent: Implementation) -> None:
    async with agent.session() as session:
        process, _, answer = await start(session, argv=["sleep"])
        assert (await session.request("POST", f"/v1/processes/{process}/signal", {"signal": 15})).status == 204
        await session.finish(answer)
        assert parse_whole(answer).exit["signal"] == 15
