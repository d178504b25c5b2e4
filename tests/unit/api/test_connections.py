"""Connections that send no request, or half of one, or more than there may be."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from squib.api import connections, exchange
from squib.api.connections import Server
from squib.api.exchange import Exchange
from squib.api.logfile import RepeatFilter
from squib.host import limits

pytestmark = pytest.mark.anyio

GET = b"GET / HTTP/1.1\r\nHost: squib\r\n\r\n"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    watched = Exchange(Headers(scope=scope), receive, send)
    if scope["path"] == "/read":
        watched.limit(1 << 20)
        while (await watched.receive()).get("more_body"):
            pass
    if scope["path"] == "/slow":
        await asyncio.sleep(0.2)
    await watched.send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await watched.send({"type": "http.response.body", "body": b"ok"})


class Client:
    """A connection by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, request: bytes = GET) -> bytes:
        """Send a request and return the head of the response, and its body of two bytes."""
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        return head + await self.reader.readexactly(2)

    async def end(self) -> bytes:
        """Wait until the server closes the connection; return what it sent before."""
        try:
            return await self.reader.read()
        except ConnectionError:
            return b""


class Served:
    def __init__(self, server: Server, port: int) -> None:
        self.server, self.port = server, port
        self._writers: list[asyncio.StreamWriter] = []

    @property
    def open(self) -> int:
        return len(self.server.server_state.connections)

    async def connect(self, send: bytes = b"") -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._writers.append(writer)
        writer.write(send)
        return Client(reader, writer)

    def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


@asynccontextmanager
async def serving(max_connections: int = 100) -> AsyncIterator[Served]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(app, listener, max_connections)
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        answering = tasks.create_task(server.answer())
        await server.answering.wait()
        served = Served(server, listener.getsockname()[1])
        try:
            yield served
        finally:
            served.close()
            server.should_exit = server.force_exit = True
        await answering


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADER_TIMEOUT_S", 0.05)
    monkeypatch.setattr(exchange, "STALL_S", 0.05)
    monkeypatch.setattr(exchange, "_LINGER_S", 0.05)


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: squib\r\nX-Half: "])
async def test_a_head_that_does_not_come_to_its_end(hasty: None, sent: bytes) -> None:
    async with serving() as served:
        client = await served.connect(sent)
        assert await client.end() == b""
        again = await served.connect()
        assert (await again.ask()).endswith(b"ok")
        again.writer.write(b"GET ")  # the second request on a connection
        assert await again.end() == b""


async def test_a_head_that_comes_in_drips(hasty: None) -> None:
    async with serving() as served:
        client = await served.connect()
        for byte in GET * 100:
            client.writer.write(bytes([byte]))
            await asyncio.sleep(0.005)
            if client.reader.at_eof() or client.reader.exception():
                return
        pytest.fail("it was let drip")


async def test_a_request_may_take_longer_than_its_head(hasty: None) -> None:
    async with serving() as served:
        client = await served.connect()
        for _ in range(2):
            assert (await client.ask(GET.replace(b"/ ", b"/slow "))).endswith(b"ok")
        await asyncio.sleep(0.1)
        assert (await client.ask()).endswith(b"ok"), "an idle connection is not one with half a head"


async def test_a_body_that_does_not_come(hasty: None, caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as served:
        client = await served.connect(b"POST /read HTTP/1.1\r\nHost: squib\r\nContent-Length: 5\r\n\r\nx")
        assert (await client.end()).startswith(b"HTTP/1.1 500")  # this app has no error handler
    assert "nothing came for 0.05 s" in caplog.text


@pytest.mark.parametrize("body", [b"Content-Length: 100\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"])
async def test_a_response_before_the_end_of_the_body_closes_the_connection(hasty: None, body: bytes) -> None:
    async with serving() as served:
        client = await served.connect()
        head = await client.ask(b"PUT / HTTP/1.1\r\nHost: squib\r\n" + body)
        assert b"\r\nconnection: close\r\n" in head.lower()
        client.writer.write(b"x" * 50)
        assert await client.end() == b""


async def test_a_client_that_is_still_sending_gets_the_response() -> None:
    async with serving() as served:
        client = await served.connect()
        client.writer.write(b"PUT / HTTP/1.1\r\nHost: squib\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(200):
            client.writer.write(b"10000\r\n" + bytes(65_536) + b"\r\n")
        client.writer.write(b"0\r\n\r\n")
        assert (await client.end()).endswith(b"ok")


async def test_a_connection_whose_body_was_read_is_kept() -> None:
    async with serving() as served:
        client = await served.connect()
        for _ in range(3):
            request = b"POST /read HTTP/1.1\r\nHost: squib\r\nContent-Length: 2\r\n\r\nhi"
            assert b"connection: close" not in (await client.ask(request)).lower()
        assert served.open == 1


async def test_a_flood_of_connections_does_not_keep_others_out(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(max_connections=20) as served:
        flood = [await served.connect(b"GET / HT") for _ in range(100)]
        for _ in range(20):
            assert (await (await served.connect()).ask()).endswith(b"ok")
        assert served.open <= 20
        assert await flood[0].end() == b""
    assert {record.levelno for record in caplog.records if record.name == "squib.connections"} == {logging.WARNING}


async def test_one_that_was_used_just_now_makes_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(max_connections=3) as served:
        used = [await served.connect() for _ in range(3)]
        for client in used:
            await client.ask()
        assert await (await served.connect()).end() == b""
        assert [await client.ask() for client in used] == [await used[0].ask()] * 3
        monkeypatch.setattr(connections, "_RECENT_S", 0.0)
        assert (await (await served.connect()).ask()).endswith(b"ok")


async def test_without_descriptors_it_waits_and_makes_room(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.get_running_loop()
    real, failing = loop.sock_accept, [True] * 3

    async def sock_accept(sock: socket.socket) -> Any:
        if failing:
            failing.pop()
            raise OSError(24, "Too many open files")
        return await real(sock)

    monkeypatch.setattr(loop, "sock_accept", sock_accept)
    monkeypatch.setattr(connections, "_NO_FILES_PAUSE_S", 0.01)
    async with serving() as served:
        assert (await (await served.connect()).ask()).endswith(b"ok")
    assert "connections cannot be accepted: Too many open files" in caplog.text


def test_a_repeated_warning_has_one_line_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("squib.api.logfile.time.monotonic", lambda: now)
    repeats = RepeatFilter()

    def passes(name: str, text: str, *args: object, level: int = logging.WARNING) -> str | None:
        record = logging.LogRecord(name, level, "f", 1, text, args, None)
        return record.getMessage() if repeats.filter(record) else None

    assert passes("uvicorn.error", "Invalid HTTP request received.") is not None
    assert [passes("uvicorn.error", "Invalid HTTP request received.") for _ in range(50)] == [None] * 50
    assert passes("squib.x", "VM %s is lost", "a") and passes("squib.x", "VM %s is lost", "b")
    assert passes("squib.x", "VM %s is lost", "a") is None
    assert all(passes("squib.x", "engine of /h", level=logging.INFO) for _ in range(3))
    assert passes("asyncio", "Exception in <A 1>\ntransport: 1") and not passes("asyncio", "Exception in <A 2>\nx")
    now += 61
    assert passes("uvicorn.error", "Invalid HTTP request received.") == (
        "Invalid HTTP request received. (50 more since the last such line)"
    )
    for number in range(5000):
        passes("squib.x", "%d", number)
    assert len(repeats._seen) <= 500


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((1024, 524_288), 65_536),
        ((1024, 4096), 4096),
        ((1024, resource.RLIM_INFINITY), 65_536),
        ((100_000, 524_288), 100_000),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), 65_536),
    ],
)
def test_the_limit_of_open_files_is_raised(
    monkeypatch: pytest.MonkeyPatch, before: tuple[int, int], after: int
) -> None:
    now = [before]
    monkeypatch.setattr(resource, "getrlimit", lambda _: now[0])
    monkeypatch.setattr(resource, "setrlimit", lambda _, values: now.__setitem__(0, values))
    assert limits.raise_file_limit() == after
    assert now[0][1] == before[1] and (now[0][0] == after or now[0] == before)
