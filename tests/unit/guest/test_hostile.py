"""A guest whose root has taken the agent's port and speaks HTTP/2 as no agent would."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from squib.errors import AgentUnreachable
from squib.guest import agent as agent_module
from squib.guest.agent import AgentClient
from squib.guest.http2 import STREAM_WINDOW_BYTES
from squib.host import sockets
from squib.models import ExecRequest
from tests.fakes.guest import connector

COMMAND = ExecRequest(argv=["true"])
_HEADERS, _SETTINGS, _PING, _DATA = 1, 4, 6, 0
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


def check(folder: Path, guest: Behaviour, test: Callable[[AgentClient], Awaitable[None]]) -> None:
    """Run ``test`` with a client of a guest that shakes hands and then does what ``guest`` does."""

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

    async def main() -> None:
        server = await asyncio.start_unix_server(serve, sock=sockets.listen(folder / "agent.sock"))
        client = AgentClient(connector(folder / "agent.sock"))
        async with asyncio.timeout(20):
            await client._open_connection(20, retry_s=20)  # so that a slow machine sees no second attempt
            await test(client)
            await client.close()
        server.close()

    asyncio.run(main())


def answering(*frames: bytes) -> Behaviour:
    """A guest that sends ``frames``, and reads on."""

    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"".join(frames))
        while await reader.read(1 << 16):
            pass

    return guest


@pytest.mark.parametrize("status", [b"abc", b"-5", b"000", b"2e2", b"", b"\xff\xff\xff"])
def test_a_status_that_is_none_ends_the_session_and_nothing_else(tmp_path: Path, status: bytes) -> None:
    async def test(client: AgentClient) -> None:
        with pytest.raises(AgentUnreachable):
            await client.exec(COMMAND)
        await client.close()  # which a stop waits for

    check(tmp_path, answering(headers(status)), test)


def test_a_flood_of_pings_whose_answers_are_not_read_is_not_buffered(tmp_path: Path) -> None:
    sent = 0

    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        pings = frame(_PING, b"squibber") * 1000
        while True:
            writer.write(pings)
            await writer.drain()
            sent += len(pings)

    async def test(client: AgentClient) -> None:
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

    check(tmp_path, guest, test)


@pytest.mark.parametrize("body", [b"[" * 100_000, b"{", b"[]", b'{"error": 5}'])
def test_an_answer_that_is_no_json_object_is_an_error_of_the_guest(tmp_path: Path, body: bytes) -> None:
    answer = frame(_DATA, body, flags=_END_STREAM, stream=1)

    async def test(client: AgentClient) -> None:
        with pytest.raises(AgentUnreachable):
            await client.exec(COMMAND)

    check(tmp_path, answering(headers(b"404"), answer), test)


@pytest.mark.parametrize("code", ["unauthorized", "engine_unavailable", "wrong_state", "name_taken", "x" * 500])
def test_a_guest_cannot_speak_for_the_engine(tmp_path: Path, code: str) -> None:
    body = json.dumps({"error": {"code": code, "message": "no"}}).encode()
    answer = frame(_DATA, body, flags=_END_STREAM, stream=1)

    async def test(client: AgentClient) -> None:
        with pytest.raises(AgentUnreachable, match="unknown error"):
            await client.exec(COMMAND)

    check(tmp_path, answering(headers(b"422"), answer), test)


def test_a_guest_that_shakes_hands_and_is_then_silent_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "_REPLY_TIMEOUT_S", 0.2)

    async def test(client: AgentClient) -> None:
        with pytest.raises(AgentUnreachable, match="did not respond within"):
            await client.connect(timeout_s=5)
        with pytest.raises(AgentUnreachable, match="did not respond within"):
            await client.set_clock()

    check(tmp_path, answering(), test)


def test_more_data_than_the_window_allows_ends_the_session(tmp_path: Path) -> None:
    body = frame(_DATA, bytes(STREAM_WINDOW_BYTES), stream=1)

    async def test(client: AgentClient) -> None:
        async with await client._send("GET", "/", b"", content_type="") as response:
            while client._connection and not client._connection.closed:
                await asyncio.sleep(0.01)
            assert response.received_bytes == STREAM_WINDOW_BYTES
            with pytest.raises(AgentUnreachable, match="more data than the window allows"):
                await response.read()

    check(tmp_path, answering(headers(b"200"), body, frame(_DATA, b"x", stream=1)), test)


def test_a_body_in_single_bytes_takes_no_more_memory_than_one_in_large_pieces(tmp_path: Path) -> None:
    single = frame(_DATA, b"x", stream=1) * 100_000

    async def test(client: AgentClient) -> None:
        async with await client.exec(COMMAND) as response:
            while response.received_bytes < 100_000:
                await asyncio.sleep(0.01)
            assert len(response._pieces) < 100

    check(tmp_path, answering(headers(b"200"), single), test)


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
def test_a_body_of_another_length_than_announced_is_an_error(
    tmp_path: Path, name: bytes, announced: int, sent: int
) -> None:
    pieces = [bytes(min(100_000, sent - start)) for start in range(0, sent, 100_000)] or [b""]
    body = [frame(_DATA, piece, stream=1) for piece in pieces[:-1]]
    body.append(frame(_DATA, pieces[-1], flags=_END_STREAM, stream=1))
    answer = answering(headers(b"200", name=name, length=announced), *body)

    async def test(client: AgentClient) -> None:
        with pytest.raises(AgentUnreachable):
            async with await client._send("GET", "/", b"", content_type="", window_bytes=2 << 20) as response:
                await response.read(max_bytes=2 << 20)

    check(tmp_path, answer, test)


@pytest.mark.parametrize("size", [3, 300_000, 3_000_000])
@pytest.mark.parametrize("split", [True, False])
def test_a_body_of_the_length_that_was_announced(tmp_path: Path, size: int, split: bool) -> None:
    """Its end comes with its last bytes, or on its own."""
    content = os.urandom(size)
    body = [frame(_DATA, content[start : start + 100_000], stream=1) for start in range(0, size - 1, 100_000)]
    if split:
        body.append(frame(_DATA, flags=_END_STREAM, stream=1))
    else:
        body[-1] = frame(_DATA, content[(len(body) - 1) * 100_000 :], flags=_END_STREAM, stream=1)
    answer = answering(headers(b"200", name=b"squib-length", length=size), *body)

    async def test(client: AgentClient) -> None:
        async with await client._send("GET", "/", b"", content_type="", window_bytes=4 << 20) as response:
            assert response.length == size
            assert await response.read(max_bytes=size) == content

    check(tmp_path, answer, test)
