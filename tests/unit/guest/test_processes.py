"""What a guest says of its processes: taken if it is plausible, and an error of the guest if not."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from squib.errors import AgentProtocolError, NoShell, NoSuchProcess, NoTerminal
from squib.guest.agent import AgentClient
from squib.guest.processes import MAX_PROCESSES, parse_process, parse_processes, parse_started
from squib.guest.response import Response
from squib.models import ExecRequest, OutputRange, ProcessInfo, PtySize
from squib.protocol.frames import Frame, FrameDecoder, FrameKind, encode_json
from tests.fakes.agent import FakeAgent
from tests.fakes.guest import connector, serve_agent

SESSION: dict[str, Any] = {
    "id": "p7", "pid": 312, "argv": ["sh", "\udcff"], "user": "root", "started_unix_ms": 1_763_775_600_500,
    "background": True, "pty": {"rows": 24, "cols": 80}, "stdin": False, "readers": 2,
    "stdout": {"start": 5, "end": 4711}, "stderr": {"start": 0, "end": 0}, "exit": None, "of_tomorrow": 1,
}  # fmt: skip
NO_SESSIONS: list[Any] = [
    None, [], {}, "p1",
    {"id": "p1/../.."}, {"id": "p1\n"}, {"id": "p" + "1" * 19}, {"id": "p٣"}, {"id": 7}, {"id": "p1\udcff"},
    {"pid": -1}, {"pid": 1 << 31}, {"pid": "312"}, {"pid": True}, {"pid": 1.0},
    {"argv": "sh"}, {"argv": [7]}, {"argv": None}, {"user": 0}, {"user": None},
    {"started_unix_ms": -1}, {"started_unix_ms": 1 << 62}, {"started_unix_ms": 0.5},
    {"background": "yes"}, {"stdin": 1}, {"readers": -1}, {"readers": 1 << 31},
    {"pty": {"rows": 0, "cols": 80}}, {"pty": {"rows": 24}}, {"pty": {"rows": 24, "cols": 65_536}}, {"pty": True},
    {"stdout": {"start": 6, "end": 5}}, {"stdout": {"start": -1, "end": 5}}, {"stderr": {"start": 0, "end": 1 << 64}},
    {"stdout": 7}, {"stderr": None},
    {"exit": {}}, {"exit": {"exit_code": 256}}, {"exit": {"exit_code": None, "signal": 200}}, {"exit": 0},
]  # fmt: skip


def parsed(reply: dict[str, Any]) -> list[ProcessInfo]:
    return asyncio.run(parse_processes(reply))


def test_a_session_is_read() -> None:
    assert parse_process(SESSION) == ProcessInfo(
        id="p7", pid=312, argv=["sh", "\udcff"], user="root",
        started_at=datetime(2025, 11, 22, 1, 40, 0, 500_000, UTC),
        background=True, pty=PtySize(rows=24, cols=80), stdin=False, readers=2,
        stdout=OutputRange(start=5, end=4711), stderr=OutputRange(), running=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("exit", "told"),
    [
        ({"exit_code": 3, "signal": None, "timed_out": False, "duration_ms": 1500}, (3, None, False, 1.5)),
        ({"exit_code": None, "signal": 15, "timed_out": False, "duration_ms": 1}, (143, 15, False, 0.001)),
        ({"exit_code": None, "signal": 9, "timed_out": True, "duration_ms": 0}, (124, 9, True, 0.0)),
    ],
)
def test_an_ended_session_tells_its_end_as_a_shell_does(exit: dict[str, Any], told: tuple[Any, ...]) -> None:
    info = parse_process(SESSION | {"pty": None, "exit": exit})
    assert not info.running
    assert (info.exit_code, info.signal, info.timed_out, info.duration_s) == told


@pytest.mark.parametrize("change", NO_SESSIONS, ids=repr)
def test_what_is_no_session_is_an_error_of_the_guest(change: Any) -> None:
    value = SESSION | change if isinstance(change, dict) and change else change
    with pytest.raises(AgentProtocolError):
        parse_process(value)
    with pytest.raises(AgentProtocolError):
        parsed({"processes": [SESSION, value]})


@pytest.mark.parametrize("answer", [{}, {"processes": None}, {"processes": {"p1": SESSION}}, {"processes": "p1"}])
def test_what_is_no_list_is_an_error_of_the_guest(answer: dict[str, Any]) -> None:
    with pytest.raises(AgentProtocolError):
        parsed(answer)


@pytest.mark.anyio
async def test_others_are_served_while_a_long_list_is_read() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count())
    await parse_processes({"processes": [SESSION] * MAX_PROCESSES})
    counting.cancel()
    assert turns > 50


@pytest.mark.anyio
@pytest.mark.parametrize(("padding", "fails"), [(60_000, False), (70_000, True)])
async def test_a_reply_is_bounded(tmp_path: Path, padding: int, fails: bool) -> None:
    agent = FakeAgent()
    async with asyncio.timeout(10), serve_agent(tmp_path / "agent.sock", agent):
        client = AgentClient(connector(tmp_path / "agent.sock"))
        await client.connect(timeout_s=5)
        agent.processes["p1"] = LongProcess(padding)  # type: ignore[assignment]
        if fails:
            with pytest.raises(AgentProtocolError, match="longer than 65536 bytes"):
                await client.process("p1")
        else:
            assert (await client.process("p1")).argv == ["x" * padding]
        await client.close()


class LongProcess:
    def __init__(self, size: int) -> None:
        self._size = size

    def describe(self) -> dict[str, Any]:
        return SESSION | {"argv": ["x" * self._size]}


def test_a_list_is_bounded() -> None:
    assert len(parsed({"processes": [SESSION] * MAX_PROCESSES})) == MAX_PROCESSES
    with pytest.raises(AgentProtocolError):
        parsed({"processes": [SESSION] * (MAX_PROCESSES + 1)})


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda child: (
    st.lists(child, max_size=3) | st.dictionaries(st.sampled_from(sorted(SESSION)), child, max_size=3)
), max_leaves=10)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(SESSION)), JSON)
def test_any_value_in_any_field_is_read_or_refused(name: str, value: Any) -> None:
    try:
        info = parse_process(SESSION | {name: value})
    except AgentProtocolError:
        return
    assert ProcessInfo.model_validate(json.loads(json.dumps(info.model_dump(mode="json")))) == info


@pytest.mark.parametrize(
    "value", [{}, {"id": "p1"}, {"id": "1", "pid": 1}, {"id": "p1", "pid": -1}, {"id": ["p1"], "pid": 1}]
)
def test_what_names_no_process_has_not_started(value: dict[str, Any]) -> None:
    (frame,) = FrameDecoder().feed(encode_json(FrameKind.STARTED, value))
    with pytest.raises(AgentProtocolError):
        parse_started(frame)


# --- against a fake agent ----------------------------------------------------------------------------------------


@asynccontextmanager
async def agent_and_client(folder: Path) -> AsyncIterator[tuple[FakeAgent, AgentClient]]:
    agent = FakeAgent()
    async with asyncio.timeout(20), serve_agent(folder / "agent.sock", agent):
        client = AgentClient(connector(folder / "agent.sock"))
        yield agent, client
        await client.close()


async def first_of(response: Response) -> Frame:
    decoder = FrameDecoder()
    async for chunk in response.stream():
        for frame in decoder.feed(chunk):
            return frame
    raise AssertionError("no frame")


async def frames_of(response: Response) -> list[Frame]:
    decoder = FrameDecoder()
    async with response:
        return [frame async for chunk in response.stream() for frame in decoder.feed(chunk)]


@pytest.mark.anyio
async def test_what_was_asked_for_is_what_the_agent_gets(tmp_path: Path) -> None:
    async with agent_and_client(tmp_path) as (agent, client):
        request = ExecRequest(
            login=True, sudo=True, background=True, pty=PtySize(), env={"A": "1"}, cwd="/", user="u", timeout_s=1.5
        )
        async with await client.exec(request) as response:
            await first_of(response)
        assert agent.processes["p1"].spec == {
            "login": True, "sudo": True, "background": True, "pty": {"rows": 24, "cols": 80}, "env": {"A": "1"},
            "cwd": "/", "user": "u", "timeout_ms": 1500,
        }  # fmt: skip
        async with await client.exec(ExecRequest(argv=["true"])) as response:
            await first_of(response)
            assert agent.processes["p2"].spec == {"argv": ["true"]}


@pytest.mark.anyio
async def test_a_session_is_left_listed_attached_to_and_killed(tmp_path: Path) -> None:
    async with agent_and_client(tmp_path) as (_, client):
        async with await client.exec(ExecRequest(login=True, background=True, pty=PtySize())) as response:
            assert parse_started(await first_of(response)) == ("p1", 101)
        await client.resize("p1", PtySize(rows=50, cols=132))
        assert await client.write_stdin("p1", b"exit 3\r", close=False) == 7
        attached = await client.output("p1", stdout=2, stderr=0, none=False)
        output = [
            (frame.offset, frame.payload) for frame in await frames_of(attached) if frame.kind is FrameKind.STDOUT
        ]
        assert (output[0][0], b"".join(data for _, data in output)) == (2, b"[50x132]exit 3\r")
        (info,) = await client.processes()
        assert (info.id, info.exit_code, info.pty) == ("p1", 3, PtySize(rows=50, cols=132))
        only_end = await frames_of(await client.output("p1", stdout=0, stderr=0, none=True))
        assert [frame.kind for frame in only_end] == [FrameKind.STARTED, FrameKind.EXIT]
        assert await client.process("p1") == info
        await client.kill("p1")
        assert await client.processes() == []


@pytest.mark.anyio
async def test_the_agents_errors_about_sessions_are_squibs(tmp_path: Path) -> None:
    async with agent_and_client(tmp_path) as (agent, client):
        for work in (
            client.process("p9"),
            client.kill("p9"),
            client.output("p9", stdout=0, stderr=0, none=False),
            client.resize("p9", PtySize()),
            client.signal("p9", 9),
        ):
            with pytest.raises(NoSuchProcess):
                await work
        async with await client.exec(ExecRequest(argv=["sleep"])) as response:
            await first_of(response)
            with pytest.raises(NoTerminal):
                await client.resize("p1", PtySize())
        agent.no_shell = True
        with pytest.raises(NoShell) as caught:
            await client.exec(ExecRequest(login=True))
        assert "as a list" in caught.value.hint
