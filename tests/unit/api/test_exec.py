"""Commands over HTTP: their frames, their input, their end, and clients that leave in the middle."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator

import pytest
from starlette.types import ASGIApp

from squib.api.app import create_app
from squib.core.lifecycle.create import create_vm
from squib.guest.http2 import STREAM_WINDOW_BYTES
from squib.protocol.frames import CONTENT_TYPE, Frame, FrameDecoder, FrameKind
from tests.fakes.agent import FakeAgent
from tests.fakes.asgi import Request
from tests.fakes.engine import Rig
from tests.fakes.guest import running_vm

pytestmark = pytest.mark.anyio

EXEC = "/v1/vms/web/exec"


@contextlib.asynccontextmanager
async def guest_of(rig: Rig) -> AsyncIterator[tuple[ASGIApp, FakeAgent]]:
    """An app whose VM ``web`` runs, and the agent of that VM."""
    async with asyncio.timeout(20), rig.engine() as engine, running_vm(engine, rig.config) as agent:
        yield create_app(engine), agent


def command(*argv: str, **fields: object) -> Request:
    return Request("POST", EXEC, json.dumps({"argv": argv} | fields).encode())


def frames_of(request: Request) -> list[Frame]:
    assert request.status == 200, bytes(request.received)
    return list(FrameDecoder().feed(bytes(request.received)))


async def test_a_command_answers_with_its_frames(rig: Rig) -> None:
    async with guest_of(rig) as (app, _):
        started, output, end = frames_of(await command("echo", "a", "\udcff").send_to(app))
        assert (started.kind, started.json()) == (FrameKind.STARTED, {"id": "p1", "pid": 101})
        assert (output.kind, output.payload) == (FrameKind.STDOUT, b"a \xff\n")
        assert (end.kind, end.json()["exit_code"]) == (FrameKind.EXIT, 0)
        assert frames_of(await command("exit", "3").send_to(app))[-1].json()["exit_code"] == 3
        assert frames_of(await command("err", "x").send_to(app))[1].kind is FrameKind.STDERR


async def test_frames_come_as_the_guest_sends_them(rig: Rig) -> None:
    async with guest_of(rig) as (app, _):
        request = command("sleep")
        task = asyncio.create_task(request.send_to(app))
        await request.arrived.wait()
        assert [frame.kind for frame in frames_of(request)] == [FrameKind.STARTED]
        request.leave.set()
        await task


async def test_the_environment_of_a_command_reaches_it(rig: Rig) -> None:
    async with guest_of(rig) as (app, _):
        output = frames_of(await command("env", env={"A": "caf\udce9"}).send_to(app))[1]
        assert json.loads(output.payload) == {"A": "caf\udce9"}


async def test_a_request_may_hold_what_linux_takes(rig: Rig) -> None:
    async with guest_of(rig) as (app, _):
        for argument, count in (("x" * 65_536, 16), ("é" * 60_000, 3), ("\x01" * 65_536, 30)):
            assert frames_of(await command("true", *[argument] * count).send_to(app))[-1].json()["exit_code"] == 0
        request = await command("true", "x" * (128 << 10)).send_to(app)
        assert (request.status, request.error["code"]) == (422, "arguments_too_long")
        assert "vm.files.write" in request.error["hint"]


async def test_a_timeout_is_in_the_last_frame(rig: Rig) -> None:
    async with guest_of(rig) as (app, _):
        end = frames_of(await command("sleep", timeout_s=0.01).send_to(app))[-1]
        assert (end.kind, end.json()["timed_out"]) == (FrameKind.EXIT, True)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [({"argv": ["nosuch"]}, 422, "command_not_found"), ({"shell": "true"}, 422, "no_shell")],
)
async def test_a_command_that_cannot_be_started_is_an_error_and_no_stream(
    rig: Rig, body: object, status: int, code: str
) -> None:
    async with guest_of(rig) as (app, _):
        request = await Request("POST", EXEC, json.dumps(body).encode()).send_to(app)
        assert (request.status, request.error["code"]) == (status, code)
        assert request.error["hint"]


async def test_standard_input_is_fed_and_closed(rig: Rig) -> None:
    async with guest_of(rig) as (app, _):
        request = command("cat", stdin=True)
        task = asyncio.create_task(request.send_to(app))
        await request.head.wait()
        path = "/v1/vms/web/processes/p1/stdin"
        first = await Request("POST", path, [b"one ", b"two "]).send_to(app)
        last = await Request("POST", f"{path}?close=true", b"three").send_to(app)
        assert (first.json, last.json) == ({"written": 8}, {"written": 5})
        await task
        output = b"".join(frame.payload for frame in frames_of(request) if frame.kind is FrameKind.STDOUT)
        assert output == b"one two three"
        gone = await Request("POST", path, b"more").send_to(app)
        assert (gone.status, gone.error["code"]) == (404, "no_such_process")


async def test_a_signal_is_passed_on(rig: Rig) -> None:
    async with guest_of(rig) as (app, agent):
        sleeping = command("sleep")
        task = asyncio.create_task(sleeping.send_to(app))
        await sleeping.head.wait()
        request = await Request("POST", "/v1/vms/web/processes/p1/signal", b'{"signal": 15}').send_to(app)
        assert (request.status, agent.killed) == (204, ["p1 signal 15"])
        await task
        assert frames_of(sleeping)[-1].json()["signal"] == 15


async def after_the_reset(app: ASGIApp) -> None:
    """One more command: it reaches the guest after what was sent before."""
    assert frames_of(await command("true").send_to(app))[-1].kind is FrameKind.EXIT


async def test_a_client_that_leaves_kills_its_command(rig: Rig) -> None:
    async with guest_of(rig) as (app, agent):
        request = command("sleep")
        task = asyncio.create_task(request.send_to(app))
        await request.arrived.wait()
        assert agent.killed == []
        request.leave.set()
        await task
        await after_the_reset(app)
        assert agent.killed == ["p1"]


async def test_a_client_that_has_left_before_the_answer_begins_kills_its_command(rig: Rig) -> None:
    async with guest_of(rig) as (app, agent):
        request = command("sleep")
        request.leave.set()
        await request.send_to(app)
        await after_the_reset(app)
        assert agent.killed == ["p1"]


async def test_a_client_that_stops_reading_and_leaves_kills_its_command(rig: Rig) -> None:
    async with guest_of(rig) as (app, agent):
        request = command("spam")
        request.reads.clear()
        task = asyncio.create_task(request.send_to(app))
        await request.arrived.wait()
        await after_the_reset(app)
        assert agent.killed == [] and len(request.received) <= STREAM_WINDOW_BYTES
        request.leave.set()
        await task
        await after_the_reset(app)
        assert agent.killed == ["p1"]


async def test_a_command_that_ends_by_itself_is_not_killed(rig: Rig) -> None:
    async with guest_of(rig) as (app, agent):
        for _ in range(3):
            await after_the_reset(app)
        assert agent.killed == []


async def test_what_is_not_output_of_a_command_is_not_forwarded(rig: Rig) -> None:
    async with guest_of(rig) as (app, _):
        request = await command("garbage").send_to(app)
        assert request.status == 200
        first, last = frames_of(request)
        assert (first.kind, last.kind) == (FrameKind.STARTED, FrameKind.ERROR)
        assert last.json()["code"] == "agent_protocol_error"


@pytest.mark.parametrize("by", ["guest", "host"])
async def test_a_vm_that_is_lost_ends_the_stream_with_an_error(rig: Rig, by: str) -> None:
    async with asyncio.timeout(20), rig.engine() as engine:
        config = rig.config.model_copy(update={"name": "web"})
        vm = await create_vm(engine, config, start=True, on_progress=lambda _: None)
        app = create_app(engine)
        request = command("vanish" if by == "guest" else "sleep")
        task = asyncio.create_task(request.send_to(app))
        await request.arrived.wait()
        if by == "host":
            assert vm.pid
            os.kill(vm.pid, signal.SIGKILL)
        await task
        first, last = frames_of(request)
        assert (first.kind, last.kind) == (FrameKind.STARTED, FrameKind.ERROR)
        assert last.json()["code"] == "agent_lost"
        assert "lost" in last.json()["message"]


async def test_the_answer_says_that_it_is_frames(rig: Rig) -> None:
    async with asyncio.timeout(20), rig.http() as (engine, http), running_vm(engine, rig.config):
        response = await http.post(EXEC, json={"argv": ["true"]})
        assert response.headers["content-type"] == CONTENT_TYPE
