"""Responses that make no sense: each raises an error of squib's, never a `TypeError` or `KeyError`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import httpx
import pytest

from squib.errors import AgentProtocolError, EngineUnavailable, InternalError, NotFound
from squib.models import VMConfig
from squib.protocol.frames import FrameKind, encode, encode_json
from squib.sdk.aio_process import AsyncProcess
from squib.sdk.client import EngineClient
from squib.sdk.command import exec_request, start_background, start_command
from squib.sdk.fileclient import FileClient
from tests.fakes.values import exit_frame, make_process

pytestmark = pytest.mark.anyio

STARTED = encode_json(FrameKind.STARTED, {"id": "p1", "pid": 7})
GARBAGE = [b"", b"null", b"[]", b"7", b'"x"', b"{}", b"\xff", b"<html>", b"[" * 100_000]


def answering(body: bytes, status: int = 200) -> EngineClient:
    """Return a client whose requests all get this response."""

    async def content() -> AsyncIterator[bytes]:
        yield body

    engine = EngineClient(url="http://somewhere:1")
    transport = httpx.MockTransport(lambda _: httpx.Response(status, content=content()))
    engine._http = httpx.AsyncClient(transport=transport, base_url="http://somewhere:1")
    return engine


async def no_chunks() -> AsyncIterator[bytes]:
    for _ in ():
        yield b""


@pytest.mark.parametrize("body", GARBAGE)
async def test_a_vm(body: bytes) -> None:
    engine = answering(body)
    for ask in (engine.vm, engine.pause_vm, engine.resume_vm):
        with pytest.raises(EngineUnavailable, match="another version"):
            await ask("web")
    with pytest.raises(EngineUnavailable, match="another version"):
        await engine.create_vm(VMConfig())


@pytest.mark.parametrize("body", GARBAGE)
async def test_a_file(body: bytes) -> None:
    files = FileClient(answering(body), "web")
    with pytest.raises((AgentProtocolError, EngineUnavailable)):
        await files.stat("/a")
    with pytest.raises(AgentProtocolError):
        await files.write("/a", no_chunks())
    with pytest.raises(AgentProtocolError):
        await files.write_tar("/a", no_chunks(), owner=None, keep_owner=False, create=False)


@pytest.mark.parametrize("counts", [{"entries": 1}, {"entries": "1", "bytes": 2}, {"entries": None, "bytes": 2}])
async def test_the_counts_of_an_upload(counts: dict[str, object]) -> None:
    files = FileClient(answering(json.dumps(counts).encode()), "web")
    with pytest.raises(AgentProtocolError):
        await files.write_tar("/a", no_chunks(), owner=None, keep_owner=False, create=False)


@pytest.mark.parametrize("error", [None, 7, "x", [], {}, {"code": {}, "message": [1]}, {"code": 3, "hint": {}}])
async def test_an_error(error: object) -> None:
    with pytest.raises((EngineUnavailable, InternalError)):
        await answering(json.dumps({"error": error}).encode(), status=500).vm("web")
    frame = encode_json(FrameKind.ERROR, error)
    with pytest.raises((AgentProtocolError, InternalError)):
        async with start_command(answering(STARTED + frame), "web", exec_request("true")) as command:
            _ = [chunk async for chunk in command.output()]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>not a frame at all</html>",
        encode(FrameKind.STDOUT, b"x"),
        encode(FrameKind.STARTED, b"{"),
        encode_json(FrameKind.STARTED, {}),
        encode_json(FrameKind.STARTED, {"id": "../p1"}),
    ],
)
async def test_the_start_of_a_command(body: bytes) -> None:
    with pytest.raises(AgentProtocolError):
        async with start_command(answering(body), "web", exec_request("true")):
            pytest.fail("it started")
    with pytest.raises(AgentProtocolError):
        await start_background(answering(body), "web", exec_request("true"))


async def test_a_command_that_the_engine_could_not_start() -> None:
    body = encode_json(FrameKind.ERROR, {"code": "not_found", "message": "deleted"})
    with pytest.raises(NotFound, match="deleted"):
        async with start_command(answering(body), "web", exec_request("true")):
            pytest.fail("it started")


@pytest.mark.parametrize("rest", [b"", encode(FrameKind.EXIT, b"[]"), exit_frame("soon"), b"\x01\xff\xff\xff\xff" * 9])  # type: ignore[arg-type]
async def test_the_end_of_a_command(rest: bytes) -> None:
    with pytest.raises(AgentProtocolError):
        async with start_command(answering(STARTED + rest), "web", exec_request("true")) as command:
            _ = [chunk async for chunk in command.output()]
            _ = command.end
    process = AsyncProcess(answering(rest), "web", make_process("p1"))
    with pytest.raises(AgentProtocolError):
        _ = [chunk async for chunk in process]


async def test_frames_of_a_newer_engine() -> None:
    newer = b"\x09\0\0\0\x03" + bytes(8) + b"abc"
    body = newer + STARTED + newer + encode(FrameKind.STDOUT, b"out") + newer + exit_frame(0)
    async with start_command(answering(body), "web", exec_request("true")) as command:
        assert [frame.payload async for frame in command.output()] == [b"out"]
        assert command.end.exit_code == 0
