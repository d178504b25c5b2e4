"""Process sessions over HTTP: a client that knows the ID can find, read, write, signal and kill one."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest
from starlette.types import ASGIApp

from squib.api.app import create_app
from squib.core.guestio import stall
from squib.protocol.frames import Frame, FrameDecoder, FrameKind
from tests.fakes.agent import FakeAgent
from tests.fakes.asgi import Request
from tests.fakes.engine import Rig
from tests.fakes.guest import running_vm

pytestmark = [pytest.mark.anyio, pytest.mark.slow]  # through an engine and a guest

PROCESSES = "/v1/vms/web/processes"


@contextlib.asynccontextmanager
async def guest_of(rig: Rig) -> AsyncIterator[tuple[ASGIApp, FakeAgent]]:
    """An app whose VM ``web`` runs, and the agent of that VM."""
    async with asyncio.timeout(20), rig.engine() as engine, running_vm(engine, rig.config) as agent:
        yield create_app(engine), agent


async def send(app: ASGIApp, method: str, path: str, body: object = None) -> Request:
    return await Request(method, PROCESSES + path, b"" if body is None else json.dumps(body).encode()).send_to(app)


async def start(app: ASGIApp, *argv: str, **fields: object) -> Request:
    """A command of the background whose client leaves when it knows the id."""
    request = Request("POST", "/v1/vms/web/exec", json.dumps({"argv": argv, "background": True} | fields).encode())
    answering = asyncio.create_task(request.send_to(app))
    await request.arrived.wait()
    request.leave.set()
    await answering
    return request


def frames_of(request: Request) -> list[Frame]:
    assert request.status == 200, bytes(request.received)
    return list(FrameDecoder().feed(bytes(request.received)))


def output_of(request: Request, kind: FrameKind = FrameKind.STDOUT) -> bytes:
    return b"".join(frame.payload for frame in frames_of(request) if frame.kind is kind)


async def test_a_command_of_the_background_outlives_its_client(rig: Rig) -> None:
    async with guest_of(rig) as (app, agent):
        first = frames_of(await start(app, "sleep"))[0]
        assert (first.kind, first.json()) == (FrameKind.STARTED, {"id": "p1", "pid": 101})
        (info,) = (await send(app, "GET", "")).json["processes"]
        assert (info["id"], info["argv"], info["running"], info["background"]) == ("p1", ["sleep"], True, True)
        assert (await send(app, "GET", "/p1")).json == info
        assert agent.killed == []


async def test_one_whose_client_has_left_before_the_answer_begins_does_too(rig: Rig) -> None:
    async with guest_of(rig) as (app, agent):
        request = Request("POST", "/v1/vms/web/exec", b'{"argv": ["sleep"], "background": true}')
        request.leave.set()
        await request.send_to(app)
        assert [info["id"] for info in (await send(app, "GET", "")).json["processes"]] == ["p1"]
        assert agent.killed == []


async def test_arguments_that_are_no_utf8_are_told(rig: Rig) -> None:
    async with guest_of(rig) as (app, _):
        await start(app, "echo", "\udcff")
        answer = await send(app, "GET", "/p1")
        assert answer.received.isascii() and answer.json["argv"] == ["echo", "\udcff"]


async def test_output_is_read_again_from_an_offset_and_told_with_its_end(rig: Rig) -> None:
    async with guest_of(rig) as (app, _):
        await start(app, "echo", "hello")
        whole = await send(app, "GET", "/p1/output")
        assert [frame.kind for frame in frames_of(whole)] == [FrameKind.STARTED, FrameKind.STDOUT, FrameKind.EXIT]
        part = await send(app, "GET", "/p1/output?stdout=3&stderr=0")
        assert (output_of(part), frames_of(part)[1].offset) == (b"lo\n", 3)
        past = await send(app, "GET", "/p1/output?stdout=100")
        assert output_of(past) == b""
        only_end = frames_of(await send(app, "GET", "/p1/output?none=true"))
        assert [frame.kind for frame in only_end] == [FrameKind.STARTED, FrameKind.EXIT]


@pytest.mark.parametrize("query", ["stdout=-1", "stdout=x", "stderr=1e3", f"stdout={1 << 63}", "none=maybe"])
async def test_what_is_no_offset_is_refused(rig: Rig, query: str) -> None:
    async with guest_of(rig) as (app, _):
        await start(app, "sleep")
        request = await send(app, "GET", f"/p1/output?{query}")
        assert (request.status, request.error["code"]) == (400, "invalid_argument")
        assert request.error["message"].startswith(query.partition("=")[0])


async def test_a_reader_that_leaves_does_nothing_to_the_command(rig: Rig) -> None:
    async with guest_of(rig) as (app, agent):
        await start(app, "sleep")
        for path in ("/p1/output", "/p1/output?none=true"):
            reader = Request("GET", PROCESSES + path)
            reading = asyncio.create_task(reader.send_to(app))
            await reader.arrived.wait()
            reader.leave.set()
            await reading
        assert (await send(app, "GET", "/p1")).json["running"] is True
        assert agent.killed == []


async def test_input_is_written_and_closed_by_whoever_knows_the_id(rig: Rig) -> None:
    async with guest_of(rig) as (app, _):
        await start(app, "cat", stdin=True)
        await Request("POST", f"{PROCESSES}/p1/stdin", b"one ").send_to(app)
        await Request("POST", f"{PROCESSES}/p1/stdin?close=true", b"two").send_to(app)
        assert output_of(await send(app, "GET", "/p1/output")) == b"one two"
        late = await Request("POST", f"{PROCESSES}/p1/stdin", b"late").send_to(app)
        assert (late.status, late.error["code"]) == (409, "stdin_closed")


async def test_a_command_is_signalled_killed_and_forgotten(rig: Rig) -> None:
    async with guest_of(rig) as (app, agent):
        await start(app, "sleep")
        assert (await send(app, "POST", "/p1/signal", {"signal": 15})).status == 204
        ended = (await send(app, "GET", "/p1")).json
        assert (ended["running"], ended["exit_code"], ended["signal"]) == (False, 143, 15)
        await start(app, "sleep")
        for process_id in ("p1", "p2"):
            request = await send(app, "DELETE", f"/{process_id}")
            assert (request.status, request.received) == (204, b"")
            gone = await send(app, "GET", f"/{process_id}")
            assert (gone.status, gone.error["code"]) == (404, "no_such_process")
        assert agent.killed == ["p1 signal 15", "p2"]
        assert (await send(app, "GET", "")).json == {"processes": []}


async def test_a_terminal_is_resized_and_what_has_none_is_not(rig: Rig) -> None:
    async with guest_of(rig) as (app, agent):
        await start(app, "tty", pty={"rows": 24, "cols": 80})
        await start(app, "sleep")
        assert (await send(app, "POST", "/p1/resize", {"rows": 50, "cols": 132})).status == 204
        assert (await send(app, "GET", "/p1")).json["pty"] == {"rows": 50, "cols": 132}
        refused = await send(app, "POST", "/p2/resize", {"rows": 50, "cols": 132})
        assert (refused.status, refused.error["code"]) == (409, "no_terminal")
        for size in ({"rows": 0, "cols": 80}, {"rows": 24}, {"rows": 24, "cols": 1 << 16}):
            assert (await send(app, "POST", "/p1/resize", size)).status == 400
        assert agent.processes["p1"].resized == [{"rows": 50, "cols": 132}]


async def test_readers_too_learn_of_a_guest_that_falls_silent(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stall, "STALL_TIMEOUT_S", 0.2)
    monkeypatch.setattr(stall, "_POLL_S", 0.05)

    async with guest_of(rig) as (app, agent):
        await start(app, "sleep")
        for path in ("/p1/output", "/p1/output?none=true"):
            last = frames_of(await send(app, "GET", path))[-1]
            assert last.kind is FrameKind.ERROR and "made no progress" in last.json()["message"]
        agent.idle_s = 0.05
        reader = Request("GET", f"{PROCESSES}/p1/output")
        reading = asyncio.create_task(reader.send_to(app))
        await asyncio.sleep(0.6)  # stall watch of the command is none of the guest
        assert not reading.done()
        reader.leave.set()
        await reading
