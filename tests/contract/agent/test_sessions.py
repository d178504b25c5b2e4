"""``/v1/processes``: sessions are listed, followed, fed, resized, signalled and killed."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.contract.agent.frames import STDOUT, Frames, end_of, parse_whole, run, start, start_background
from tests.contract.agent.http2 import RawSession
from tests.contract.agent.implementations import Implementation

pytestmark = pytest.mark.anyio
BAD_REQUEST = (400, "bad_request")
NO_SUCH_PROCESS = (404, "no_such_process")
SIZE = {"rows": 24, "cols": 80}


async def described(session: RawSession, process: str) -> dict[str, Any]:
    answer = await session.request("GET", f"/v1/processes/{process}")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    return dict(answer.json())


async def listed(session: RawSession) -> list[str]:
    return [process["id"] for process in (await session.request("GET", "/v1/processes")).json()["processes"]]


async def output(session: RawSession, process: str, query: str = "") -> Frames:
    return parse_whole(await session.request("GET", f"/v1/processes/{process}/output{query}"))


async def test_a_session_is_described(agent: Implementation) -> None:
    async with agent.session() as session:
        process, _, _ = await start(session, argv=["cat"], user="me", stdin=True)
        one = await described(session, process)
        assert one == {
            "id": process, "pid": one["pid"], "argv": ["cat"], "user": "me", "background": False, "pty": None,
            "started_unix_ms": one["started_unix_ms"], "stdin": True, "readers": 1, "stdout": {"start": 0, "end": 0},
            "stderr": {"start": 0, "end": 0}, "exit": None,
        }  # fmt: skip
        assert one["pid"] > 0
        assert one["started_unix_ms"] > 1_700_000_000_000
        assert (await session.request("GET", "/v1/processes")).json() == {"processes": [one]}


async def test_an_ended_background_session_is_kept_with_its_output(agent: Implementation) -> None:
    async with agent.session() as session:
        process = await start_background(session, argv=["echo", "done"])
        ended = await end_of(session, process)
        assert ended.output == []
        one = await described(session, process)
        assert (one["exit"], one["stdout"]) == (ended.exit, {"start": 0, "end": 5})
        assert (await output(session, process)).stdout == b"done\n"


async def test_sessions_are_listed_oldest_first_and_foreground_ones_forgotten(agent: Implementation) -> None:
    async with agent.session() as session:
        background = [await start_background(session, argv=["sleep"]) for _ in range(3)]
        await run(session, argv=["true"])
        assert await listed(session) == background


async def test_the_last_32_ended_sessions_are_kept(agent: Implementation) -> None:
    async with agent.session() as session:
        started = []
        for _ in range(34):
            started.append(await start_background(session, argv=["true"]))
            await end_of(session, started[-1])
        async with asyncio.timeout(10):
            while (kept := await listed(session)) != started[2:]:
                assert len(kept) >= 32
        assert (await session.request("GET", f"/v1/processes/{started[0]}")).error == NO_SUCH_PROCESS


async def test_long_arguments_are_cut(agent: Implementation) -> None:
    async with agent.session() as session:
        process = await start_background(session, argv=["echo", "x" * 1000, "y" * 1500, "z"])
        assert (await described(session, process))["argv"] == ["echo", "x" * 1000, "y" * 1042]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "", b""), ("DELETE", "", b""), ("GET", "/output", b""), ("GET", "/output?none=1", b""),
        ("POST", "/stdin", b"x"), ("POST", "/resize", b'{"rows": 1, "cols": 1}'), ("POST", "/signal", b'{"signal": 9}'),
    ],
)  # fmt: skip
async def test_a_session_that_does_not_exist(agent: Implementation, method: str, path: str, body: bytes) -> None:
    async with agent.session() as session:
        for process in ("p99", "1", "nosuch"):
            assert (await session.request(method, f"/v1/processes/{process}{path}", body)).error == NO_SUCH_PROCESS


async def test_output_from_an_offset(agent: Implementation) -> None:
    async with agent.session() as session:
        process = await start_background(session, argv=["echo", "0123456789"])
        await end_of(session, process)
        for offset in (0, 4, 11, 500):
            frames = await output(session, process, f"?stdout={offset}&stderr=0")
            assert frames.stream(STDOUT, start=offset) == b"0123456789\n"[offset:]


@pytest.mark.parametrize("query", ["?stdout=-1", "?stdout=x", "?stderr=1.5", "?stdout="])
async def test_a_wrong_offset(agent: Implementation, query: str) -> None:
    async with agent.session() as session:
        process = await start_background(session, argv=["true"])
        answer = await session.request("GET", f"/v1/processes/{process}/output{query}")
        assert answer.error == BAD_REQUEST


async def test_several_readers_follow_a_running_command(agent: Implementation) -> None:
    async with agent.session() as session:
        process = await start_background(session, argv=["cat"], stdin=True)
        path = f"/v1/processes/{process}"
        readers = []
        for _ in range(2):
            _, reader = await session.send("GET", f"{path}/output")
            await session.read_until(reader, b'"pid"')
            readers.append(reader)
        assert (await described(session, process))["readers"] == 2
        await session.request("POST", f"{path}/stdin?close=1", b"to both")
        for reader in readers:
            await session.finish(reader)
            assert parse_whole(reader).stdout == b"to both"


async def test_leaving_the_output_does_nothing_to_the_command(agent: Implementation) -> None:
    async with agent.session() as session:
        process = await start_background(session, argv=["sleep"])
        stream, reader = await session.send("GET", f"/v1/processes/{process}/output")
        await session.read_until(reader, b'"pid"')
        session.cancel(stream)
        assert (await described(session, process))["exit"] is None


async def test_the_oldest_output_is_dropped_and_the_gap_shows(agent: Implementation) -> None:
    kib = 3000
    async with agent.session() as session:
        process = await start_background(session, argv=["flood", str(kib)])
        await end_of(session, process)  # such a reader ends the wait for the first reader
        one = await described(session, process)
        frames = await output(session, process)
        first = frames.output[0][1]
        kept = frames.stream(STDOUT, start=first)
        assert first + len(kept) == kib << 10
        assert 0 < len(kept) <= (1 << 20) + (512 << 10)
        assert one["stdout"] == {"start": first, "end": kib << 10}
        assert kept == b"".join(b"%01023d\n" % number for number in range(kib))[first:]


async def test_input_is_written_and_closed(agent: Implementation) -> None:
    async with agent.session() as session:
        process, _, answer = await start(session, argv=["cat"], stdin=True)
        path = f"/v1/processes/{process}/stdin"
        for data in (b"one ", b""):
            assert (await session.request("POST", path, data)).json() == {"written": len(data)}
        assert (await session.request("POST", f"{path}?close=1", b"two\0\xff")).json() == {"written": 5}
        await session.finish(answer)
        assert parse_whole(answer).stdout == b"one two\0\xff"


async def test_input_that_a_command_does_not_read(agent: Implementation) -> None:
    async with agent.session() as session:
        without, _, _ = await start(session, argv=["sleep"])
        ended = await start_background(session, argv=["true"], stdin=True)
        await end_of(session, ended)
        closed, _, _ = await start(session, argv=["sleep"], stdin=True)
        await session.request("POST", f"/v1/processes/{closed}/stdin?close=1")
        for process in (without, ended, closed):
            answer = await session.request("POST", f"/v1/processes/{process}/stdin", b"x")
            assert answer.error == (409, "stdin_closed")


async def test_closing_the_input_of_a_terminal_types_ctrl_d(agent: Implementation) -> None:
    async with agent.session() as session:
        process, _, answer = await start(session, argv=["tty"], pty=SIZE)
        await session.read_until(answer, b"$ ")
        assert (await session.request("POST", f"/v1/processes/{process}/stdin?close=1")).json() == {"written": 0}
        await session.finish(answer)
        assert parse_whole(answer).exit["exit_code"] == 0


async def test_a_terminal_is_resized_and_told_again_of_the_same_size(agent: Implementation) -> None:
    async with agent.session() as session:
        process, _, answer = await start(session, argv=["tty"], pty=SIZE)
        await session.read_until(answer, b"$ ")
        assert (await described(session, process))["pty"] == SIZE
        size = {"rows": 50, "cols": 132}
        for count in (1, 2):
            resized = await session.request("POST", f"/v1/processes/{process}/resize", size)
            assert (resized.status, bytes(resized.body)) == (204, b"")
            async with asyncio.timeout(10):
                while answer.body.count(b"[50x132]") < count:
                    await session.wait(answer)
        assert (await described(session, process))["pty"] == size


@pytest.mark.parametrize("size", [{}, {"rows": 0, "cols": 1}, {"rows": 1, "cols": 65_536}, {"rows": "1", "cols": 1}])
async def test_a_wrong_size(agent: Implementation, size: dict[str, Any]) -> None:
    async with agent.session() as session:
        process, _, _ = await start(session, argv=["tty"], pty=SIZE)
        assert (await session.request("POST", f"/v1/processes/{process}/resize", size)).error == BAD_REQUEST


async def test_a_command_without_a_terminal_has_no_size(agent: Implementation) -> None:
    async with agent.session() as session:
        process, _, _ = await start(session, argv=["sleep"])
        answer = await session.request("POST", f"/v1/processes/{process}/resize", SIZE)
        assert answer.error == (409, "no_terminal")


@pytest.mark.parametrize("body", [{}, {"signal": 0}, {"signal": 65}, {"signal": -9}, {"signal": "9"}, {"signal": 1.5}])
async def test_a_wrong_signal(agent: Implementation, body: dict[str, Any]) -> None:
    async with agent.session() as session:
        process, _, _ = await start(session, argv=["sleep"])
        assert (await session.request("POST", f"/v1/processes/{process}/signal", body)).error == BAD_REQUEST
        assert (await described(session, process))["exit"] is None


async def test_an_ended_session_takes_neither_signal_nor_size(agent: Implementation) -> None:
    async with agent.session() as session:
        process = await start_background(session, argv=["env"], pty=SIZE)
        await end_of(session, process)
        path = f"/v1/processes/{process}"
        assert (await session.request("POST", f"{path}/signal", {"signal": 15})).error == NO_SUCH_PROCESS
        assert (await session.request("POST", f"{path}/resize", SIZE)).error == NO_SUCH_PROCESS


async def test_a_signal_reaches_the_process_group(real: Implementation) -> None:
    async with real.session() as session:
        child = "(trap 'echo child; exit' USR1; echo ready; while :; do /bin/sleep 0.01; done)"
        script = f"trap 'echo parent' USR1; {child} & wait; wait"
        process, _, answer = await start(session, shell=script)
        await session.read_until(answer, b"ready\n")
        await session.request("POST", f"/v1/processes/{process}/signal", {"signal": 10})
        await session.finish(answer)
        assert sorted(parse_whole(answer).stdout.split()) == [b"child", b"parent", b"ready"]


async def test_a_kill_ends_a_command_and_forgets_it(agent: Implementation) -> None:
    async with agent.session() as session:
        process, _, answer = await start(session, argv=["sleep"])
        killed = await session.request("DELETE", f"/v1/processes/{process}")
        assert (killed.status, bytes(killed.body)) == (204, b"")
        await session.finish(answer)
        assert parse_whole(answer).exit["signal"] == 9
        assert (await session.request("DELETE", f"/v1/processes/{process}")).error == NO_SUCH_PROCESS


async def test_an_ended_session_is_forgotten_by_a_kill(agent: Implementation) -> None:
    async with agent.session() as session:
        process = await start_background(session, argv=["true"])
        await end_of(session, process)
        assert (await session.request("DELETE", f"/v1/processes/{process}")).status == 204
        assert await listed(session) == []


async def test_a_kill_ends_the_whole_process_group(real: Implementation) -> None:
    async with real.session() as session:
        process, _, answer = await start(session, argv=["sh", "-c", "/bin/sleep 1000 & echo $!; wait"])
        await session.read_until(answer, b"\n")
        await session.request("DELETE", f"/v1/processes/{process}")
        await session.finish(answer)
        child = int(parse_whole(answer).stdout)
        assert not _is_running(child)


async def test_a_kill_ends_the_descendants_of_an_ended_command(real: Implementation) -> None:
    """Before: a foreground session was forgotten with its request, and a kill of an ended one killed nothing."""
    async with real.session() as session:
        for background in (False, True):
            script = "/bin/sleep 1000 >&- 2>&- & echo $!"
            process, _, answer = await start(session, argv=["sh", "-c", script], background=background)
            await session.finish(answer)
            child = int(parse_whole(answer).stdout)
            assert _is_running(child) and await listed(session) == [process]
            assert (await session.request("DELETE", f"/v1/processes/{process}")).status == 204
            assert not _is_running(child) and await listed(session) == []


def _is_running(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
