"""The agent's client and the HTTP/2 session under it, against a fake agent in this process."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from squib.errors import AgentLost, AgentVersionMismatch, CommandNotFound, NoSuchProcess
from squib.guest.agent import AgentClient, Identity
from squib.guest.http2 import CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES
from squib.guest.response import Response
from squib.models import ExecRequest
from squib.protocol.frames import Frame, FrameDecoder, FrameKind
from tests.fakes.agent import FakeAgent
from tests.fakes.guest import connector, serve_agent

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def agent_and_client(folder: Path) -> AsyncIterator[tuple[FakeAgent, AgentClient]]:
    agent = FakeAgent()
    async with asyncio.timeout(20), serve_agent(folder / "agent.sock", agent):
        client = AgentClient(connector(folder / "agent.sock"))
        try:
            await client.connect(timeout_s=5)
            yield agent, client
        finally:
            await client.close()


async def frames_of(response: Response) -> list[Frame]:
    decoder = FrameDecoder()
    async with response:
        return [frame async for chunk in response.stream() for frame in decoder.feed(chunk)]


async def test_hello_tells_the_guest_kernel(tmp_path: Path) -> None:
    async with agent_and_client(tmp_path) as (agent, client):
        assert (await client.connect(timeout_s=1)).kernel == "6.0-fake"
        assert agent.sessions == 1


async def test_another_protocol_is_refused(tmp_path: Path) -> None:
    async with agent_and_client(tmp_path) as (agent, client):
        agent.protocol = 2
        await client.close()
        with pytest.raises(AgentVersionMismatch, match="protocol 2"):
            await client.connect(timeout_s=1)


async def test_setup_sends_identity_time_and_entropy(tmp_path: Path) -> None:
    async with agent_and_client(tmp_path) as (agent, client):
        await client.setup(Identity("vm-1", "h", "0" * 32), env={"A": "1"})
        assert agent.setup["hostname"] == "h"
        assert agent.setup["env"] == {"A": "1"}
        assert len(agent.setup["entropy"]) >= 44
        assert agent.setup["time_unix_ms"] > 1_700_000_000_000


async def test_a_command_streams_its_frames(tmp_path: Path) -> None:
    async with agent_and_client(tmp_path) as (_, client):
        frames = await frames_of(await client.exec(ExecRequest(argv=["echo", "a", "\udcff"])))
        assert [frame.kind for frame in frames] == [FrameKind.STARTED, FrameKind.STDOUT, FrameKind.EXIT]
        assert frames[1].payload == b"a \xff\n"


async def test_the_agents_errors_are_squibs(tmp_path: Path) -> None:
    async with agent_and_client(tmp_path) as (_, client):
        with pytest.raises(CommandNotFound, match="nosuch"):
            await client.exec(ExecRequest(argv=["nosuch"]))
        with pytest.raises(NoSuchProcess):
            await client.write_stdin("p99", b"x", close=True)


async def test_stdin_larger_than_every_window_comes_back(tmp_path: Path) -> None:
    data = os.urandom(3 << 20)

    async with agent_and_client(tmp_path) as (_, client):
        response = await client.exec(ExecRequest(argv=["cat"], stdin=True))
        writing = asyncio.create_task(client.write_stdin("p1", data, close=True))
        frames = await frames_of(response)
        assert await writing == len(data)
        assert b"".join(frame.payload for frame in frames if frame.kind is FrameKind.STDOUT) == data


async def test_input_that_nobody_reads_leaves_room_for_other_requests(tmp_path: Path) -> None:
    async with agent_and_client(tmp_path) as (agent, client):
        agent.stdin_stalls = True
        await client.exec(ExecRequest(argv=["cat"], stdin=True))
        writing = []
        for number in range(2, 42):
            await client.exec(ExecRequest(argv=["sleep"], stdin=True))
            writing.append(asyncio.create_task(client.write_stdin(f"p{number}", bytes(1 << 20), close=True)))
        frames = await frames_of(await client.exec(ExecRequest(argv=["echo", "x" * 20_000])))
        assert frames[1].payload == b"x" * 20_000 + b"\n"
        assert await asyncio.wait_for(client.write_stdin("p1", b"key", close=False), 5) == 3
        for task in writing:
            assert not task.done()
            task.cancel()


async def test_leaving_a_command_kills_it_and_gives_its_window_back(tmp_path: Path) -> None:
    count = CONNECTION_WINDOW_BYTES // STREAM_WINDOW_BYTES + 44  # more than the connection's window holds

    async with agent_and_client(tmp_path) as (agent, client):
        for _ in range(count):
            async with await client.exec(ExecRequest(argv=["spam"])) as response:
                async for _ in response.stream():
                    break
        frames = await frames_of(await client.exec(ExecRequest(argv=["echo", "still", "here"])))
        assert frames[1].payload == b"still here\n"
        assert len(agent.killed) == count
        assert agent.sessions == 1


async def test_a_reader_that_stops_does_not_stop_the_others(tmp_path: Path) -> None:
    async with agent_and_client(tmp_path) as (_, client):
        stopped = [await client.exec(ExecRequest(argv=["spam"])) for _ in range(20)]
        frames = await frames_of(await client.exec(ExecRequest(argv=["true"])))
        assert frames[-1].json()["exit_code"] == 0
        for response in stopped:
            response.close()


async def test_a_reader_that_stops_holds_one_window_and_no_more(tmp_path: Path) -> None:
    async with agent_and_client(tmp_path) as (_, client), await client.exec(ExecRequest(argv=["spam"])) as response:
        await frames_of(await client.exec(ExecRequest(argv=["true"])))
        held = sum(map(len, response._pieces))
        assert 0 < held <= STREAM_WINDOW_BYTES


async def test_a_cancelled_command_is_killed(tmp_path: Path) -> None:
    async with agent_and_client(tmp_path) as (agent, client):
        task = asyncio.create_task(frames_of(await client.exec(ExecRequest(argv=["sleep"]))))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await frames_of(await client.exec(ExecRequest(argv=["true"])))  # comes after the reset
        assert agent.killed == ["p1"]


async def test_a_lost_session_fails_its_commands_and_a_new_one_is_made(tmp_path: Path) -> None:
    async with agent_and_client(tmp_path) as (agent, client):
        response = await client.exec(ExecRequest(argv=["sleep"]))
        assert client._connection
        client._connection._transport.abort()
        with pytest.raises(AgentLost):
            await frames_of(response)
        frames = await frames_of(await client.exec(ExecRequest(argv=["true"])))
        assert frames[-1].kind is FrameKind.EXIT
        assert agent.sessions == 2


async def test_many_commands_at_once(tmp_path: Path) -> None:
    async with agent_and_client(tmp_path) as (_, client):

        async def echo(number: int) -> bytes:
            frames = await frames_of(await client.exec(ExecRequest(argv=["echo", str(number)])))
            return frames[1].payload

        answers = await asyncio.gather(*map(echo, range(100)))
        assert answers == [b"%d\n" % number for number in range(100)]
