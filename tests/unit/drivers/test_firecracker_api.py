"""The client of Firecracker's API, and answers that no Firecracker gives: each ends in an error, in bounded memory."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from squib.drivers.firecracker import api
from squib.drivers.firecracker.api import ApiClient
from squib.drivers.firecracker.machine import describe
from squib.drivers.firecracker.requests import DESCRIBE, START
from squib.errors import ToolFailed
from squib.host import sockets

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n"
HEAD = b"HTTP/1.1 200 \r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


def answer(body: bytes, *, length: int | None = None) -> bytes:
    return HEAD % (len(body) if length is None else length) + body


@contextlib.asynccontextmanager
async def served(folder: Path, *answers: bytes, then_close: bool = False) -> AsyncIterator[ApiClient]:
    """A client of a server that gives these answers, one for each request."""
    path, left = folder / "api.sock", list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, EOFError):
            while left and await reader.readuntil(b"\r\n\r\n"):
                writer.write(left.pop(0))
                await writer.drain()
            if not then_close:
                await reader.read()
        writer.close()

    def connect() -> socket.socket:
        return sockets.connect(path, blocking=False)

    async with await asyncio.start_unix_server(serve, path):
        client = ApiClient(connect)
        try:
            yield client
        finally:
            client.close()


async def test_requests_share_a_connection(tmp_path: Path) -> None:
    async with served(tmp_path, OK, answer(b'{"state": "Running"}'), OK) as client:
        assert await client.request(DESCRIBE) is None
        assert await describe(client, "state") == "Running"
        assert await client.request(DESCRIBE) is None


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (b"garbage\r\n\r\n", "Firecracker failed at GET /"),
        (b"HTTP/1.1 200 \r\nX: " + b"x" * (1 << 18), "Firecracker failed at GET /"),
        (answer(b"x" * (2 << 20)), "too long"),
        (answer(b"{", length=10), "closed the connection"),
        (b"", "closed the connection"),
        (b"HTTP/1.1 400 \r\nContent-Length: 26\r\n\r\n" + b'{"fault_message": "a\\u001b"}'[:26], "status 400"),
        (b"HTTP/1.1 500 \r\nContent-Length: 3\r\n\r\n\x1b[1", "status 500"),
    ],
)
async def test_answers_that_are_none(tmp_path: Path, given: bytes, text: str) -> None:
    async with served(tmp_path, given, then_close=True) as client:
        with pytest.raises(ToolFailed, match=text) as raised:
            await client.request(DESCRIBE)
    assert raised.value.message.isprintable()


@pytest.mark.parametrize("body", [b"[" * 100_000, b"null", b"[]", b'{"state": 1}', b"not json", b"{}"])
async def test_descriptions_that_are_none(tmp_path: Path, body: bytes) -> None:
    async with served(tmp_path, answer(body)) as client:
        with pytest.raises(ToolFailed, match="did not describe its state"):
            await describe(client, "state")


async def test_an_answer_that_does_not_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "TIMEOUT_S", 0.1)
    async with served(tmp_path, answer(b"{", length=10)) as client:
        with pytest.raises(ToolFailed, match=r"did not respond to PUT /actions within 0\.1 s"):
            await client.request(START)


async def test_an_answer_without_end_does_not_keep_others_waiting(tmp_path: Path) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    ticking = asyncio.create_task(tick())
    async with served(tmp_path, b"HTTP/1.1 100 Continue\r\n\r\n" * 200_000) as client:
        with pytest.raises(ToolFailed, match="too long"):
            await client.request(DESCRIBE)
    ticking.cancel()
    assert ticks > 10_000  # about one for each part of the answer


async def test_a_failure_is_followed_by_a_new_connection(tmp_path: Path) -> None:
    async with served(tmp_path, b"garbage\r\n\r\n", OK) as client:
        with pytest.raises(ToolFailed):
            await client.request(DESCRIBE)
        assert await client.request(DESCRIBE) is None


async def test_no_server_is_an_error_with_its_reason(tmp_path: Path) -> None:
    client = ApiClient(lambda: sockets.connect(tmp_path / "none.sock", blocking=False))
    with pytest.raises(ToolFailed, match="No such file"):
        await client.request(DESCRIBE)
