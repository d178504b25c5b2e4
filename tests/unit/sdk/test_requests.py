"""Connections to an engine that break, are refused or fall silent: what is sent again, and when a request gives up."""

from __future__ import annotations

import asyncio
import math
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection, unix_serve

from squib.errors import EngineUnavailable, NotFound
from squib.host import sockets
from squib.host.locks import FileLock
from squib.paths import Home
from squib.sdk import httpclient, liveness
from squib.sdk.client import EngineClient
from squib.sdk.terminal import open_terminal

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
NOT_FOUND = b'{"error": {"code": "not_found", "message": "no such directory"}}'
REFUSED = b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n%b" % (len(NOT_FOUND), NOT_FOUND)
Serve = Callable[["FakeServer", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class FakeServer:
    """Counts connections and requests, and answers as a test says."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self.connections = 0
        self.requests: list[str] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._serve(self, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def head(self, reader: asyncio.StreamReader) -> str:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.requests.append(" ".join(head.split()[:2]))
        return head

    async def request(self, reader: asyncio.StreamReader) -> str:
        """Read a request whose body, if it has one, is of a known length."""
        head = await self.head(reader)
        lengths = [line.split(":")[1] for line in head.lower().splitlines() if line.startswith("content-length:")]
        await reader.readexactly(int(lengths[0]) if lengths else 0)
        return head


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.root.mkdir()
    return home


@pytest.fixture(autouse=True)
def no_engine_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ensure_engine(home: Home) -> None:
        pass

    monkeypatch.setattr(httpclient, "ensure_engine", ensure_engine)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "SILENCE_S", 0.05)
    monkeypatch.setattr(liveness, "PROBE_TIMEOUT_S", 0.05)
    monkeypatch.setattr("squib.sdk.terminal.SILENCE_S", 0.05)


@asynccontextmanager
async def serving(home: Home, serve: Serve, *, tcp: bool = False) -> AsyncIterator[tuple[FakeServer, EngineClient]]:
    fake = FakeServer(serve)
    listener = socket.create_server(("127.0.0.1", 0)) if tcp else sockets.listen(home.engine_socket)
    server = await asyncio.start_server(fake, sock=listener)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}" if tcp else None
    async with asyncio.timeout(20), server, EngineClient(url=url, home=None if tcp else home) as engine:
        yield fake, engine


over_both = pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])

# --- what is sent again ----------------------------------------------------------------------------------------------


async def closes_after_one(fake: FakeServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await fake.request(reader)
    writer.write(OK)


async def answers(fake: FakeServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        await fake.request(reader)
        writer.write(OK)


@over_both
async def test_an_idle_connection_that_the_engine_has_closed_is_not_used(home: Home, tcp: bool) -> None:
    async with serving(home, closes_after_one, tcp=tcp) as (fake, engine):
        for _ in range(5):
            assert await engine.request("POST", "/vms", {}) == {}
            await asyncio.sleep(0.01)
        assert (fake.connections, len(fake.requests)) == (5, 5)


async def test_a_post_that_the_engine_had_not_read_is_sent_again(home: Home) -> None:
    async def serve(fake: FakeServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if fake.connections > 1:
            await answers(fake, reader, writer)
        await fake.request(reader)
        writer.write(OK)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        poller = select.poll()
        poller.register(writer.get_extra_info("socket").fileno(), select.POLLIN)
        while not poller.poll(0):
            await asyncio.sleep(0)

    async with serving(home, serve) as (fake, engine):
        assert await engine.request("POST", "/first", {}) == {}
        assert await engine.request("POST", "/second", {"a": "b"}) == {}
        assert (fake.connections, fake.requests) == (2, ["POST /v1/first", "POST /v1/second"])


async def test_a_post_that_was_read_is_not_sent_again(home: Home) -> None:
    async def serve(fake: FakeServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await fake.request(reader)

    async with serving(home, serve) as (fake, engine):
        with pytest.raises(EngineUnavailable, match="broke during POST /vms"):
            await engine.request("POST", "/vms", {})
        assert fake.requests == ["POST /v1/vms"]


@over_both
async def test_a_get_whose_connection_breaks_is_sent_again(home: Home, tcp: bool) -> None:
    async def serve(fake: FakeServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await fake.request(reader)
        if fake.connections > 2:
            writer.write(OK)

    async with serving(home, serve, tcp=tcp) as (fake, engine):
        assert await engine.request("GET", "/engine") == {}
        assert fake.requests == ["GET /v1/engine"] * 3


async def test_an_upload_that_has_begun_is_not_sent_again(home: Home) -> None:
    async def serve(fake: FakeServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await fake.head(reader)
        writer.transport.abort()

    async def chunks() -> AsyncIterator[bytes]:
        while True:
            yield bytes(1 << 16)

    async with serving(home, serve) as (fake, engine):
        with pytest.raises(EngineUnavailable, match="broke during PUT /files"):
            async with engine.stream("PUT", "/files?path=/x", chunks()):
                pytest.fail("it was answered")
        assert fake.requests == ["PUT /v1/files?path=/x"]


# --- what is not used again ------------------------------------------------------------------------------------------


@over_both
async def test_the_connection_of_a_refused_upload_is_closed(home: Home, tcp: bool) -> None:
    refused = asyncio.Event()

    async def serve(fake: FakeServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while "PUT" not in await fake.head(reader):
            writer.write(OK)
        writer.write(REFUSED)
        await writer.drain()
        refused.set()
        await reader.read()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"a first piece"
        await refused.wait()
        await asyncio.sleep(0.01)  # what is left to send is the end of the body

    async with serving(home, serve, tcp=tcp) as (fake, engine):
        for _ in range(5):
            refused.clear()
            with pytest.raises(NotFound):
                async with engine.stream("PUT", "/files", chunks()):
                    pytest.fail("it was taken")
            assert await engine.request("GET", "/engine") == {}
        assert fake.requests == ["PUT /v1/files", "GET /v1/engine"] * 5


async def test_the_connection_of_a_download_that_is_left_half_way_is_closed(home: Home) -> None:
    async def serve(fake: FakeServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            half = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf"
            writer.write(half if "files" in await fake.head(reader) else OK)

    async with serving(home, serve) as (fake, engine):
        async with engine.stream("GET", "/files") as response:
            assert await anext(response.aiter_raw()) == b"half"
        assert await engine.request("GET", "/engine") == {}
        reading = asyncio.create_task(read_all(engine))
        while len(fake.requests) < 3:
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait({reading})
        assert await engine.request("GET", "/engine") == {}
        assert fake.connections == 3


async def read_all(engine: EngineClient) -> None:
    async with engine.stream("GET", "/files") as response:
        await response.aread()


# --- an engine that does not respond ---------------------------------------------------------------------------------


async def silent(fake: FakeServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await fake.head(reader)
    await reader.read()


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield bytes(1 << 16)


@over_both
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_no_request_waits_for_ever(home: Home, impatient: None, method: str, tcp: bool) -> None:
    async with serving(home, silent, tcp=tcp) as (fake, engine):
        with pytest.raises(EngineUnavailable, match=f"does not respond to {method} /vms") as caught:
            await engine.request(method, "/vms?a=b")
        assert caught.value.hint
        assert fake.requests.count(f"{method} /v1/vms?a=b") == 1


async def test_an_upload_that_the_engine_does_not_read(home: Home, impatient: None) -> None:
    async def serve(fake: FakeServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(600)

    async with serving(home, serve) as (_, engine):
        with pytest.raises(EngineUnavailable, match="does not respond to PUT /files"):
            async with engine.stream("PUT", "/files", endless()):
                pytest.fail("it was answered")


async def test_a_response_that_stops_half_way(home: Home, impatient: None) -> None:
    async def serve(fake: FakeServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if "files" in await fake.head(reader):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
        await reader.read()

    async with serving(home, serve) as (_, engine):
        with pytest.raises(EngineUnavailable, match="does not respond to GET /files"):
            async with engine.stream("GET", "/files") as response:
                await response.aread()


@over_both
async def test_a_long_request_goes_on_while_the_engine_responds(home: Home, impatient: None, tcp: bool) -> None:
    async def serve(fake: FakeServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            if "boot" in await fake.request(reader):
                while fake.requests.count("GET /v1/engine") < 3:
                    await asyncio.sleep(0.01)
            writer.write(OK)

    async with serving(home, serve, tcp=tcp) as (fake, engine):
        waiting = [asyncio.create_task(engine.request("POST", "/boot")) for _ in range(20)]
        assert await asyncio.gather(*waiting) == [{}] * 20
        assert fake.requests.count("GET /v1/engine") <= 6, "one probe serves all"


async def test_a_request_without_a_limit_waits_for_a_silent_engine(home: Home, impatient: None) -> None:
    async with serving(home, silent) as (_, engine):
        waiting = asyncio.create_task(engine.request("POST", "/hold", timeout_s=None))
        with pytest.raises(EngineUnavailable):
            await engine.request("POST", "/other")
        assert not waiting.done()
        waiting.cancel()
        await asyncio.wait({waiting})


async def test_a_full_backlog_is_not_waited_for_for_ever(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpclient, "_CONNECT_TIMEOUT_S", 0.1)
    monkeypatch.setattr("squib.sdk.terminal._OPEN_TIMEOUT_S", 0.1)
    with sockets.listen(home.engine_socket) as listener, FileLock(home.engine_lock) as lock:
        listener.listen(0)
        assert lock.try_acquire()
        with sockets.connect(home.engine_socket):
            assert sockets.is_served(home.engine_socket)
            async with asyncio.timeout(10), EngineClient(home=home) as engine:
                for method in ("GET", "POST", "DELETE"):
                    with pytest.raises(EngineUnavailable, match=f"does not respond to {method} /vms"):
                        await engine.request(method, "/vms")
                with pytest.raises(EngineUnavailable, match="does not respond to the opening of a terminal"):
                    async with open_terminal(engine, "web"):
                        pytest.fail("it was opened")


SUSPENDED = """
import sys, time
from pathlib import Path
from squib.host import sockets
from squib.host.locks import FileLock
from squib.paths import Home
home = Home(Path(sys.argv[1]))
lock = FileLock(home.engine_lock)
lock.acquire()
listener = sockets.listen(home.engine_socket)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def stopped_engine(home: Home) -> Iterator[int]:
    """The pid of a process that listens as an engine does, and is stopped."""
    argv = [sys.executable, "-c", SUSPENDED, str(home.root)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"ready\n"
        os.kill(process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        yield process.pid
        process.kill()


async def test_the_error_names_a_process_that_is_stopped(home: Home, impatient: None, stopped_engine: int) -> None:
    async with asyncio.timeout(10), EngineClient(home=home) as engine:
        with pytest.raises(EngineUnavailable, match=f"its process {stopped_engine} is stopped") as caught:
            await engine.request("DELETE", "/vms/web")
        assert f"kill -CONT {stopped_engine}" in caught.value.hint and "engine.log" in caught.value.hint
        os.kill(stopped_engine, signal.SIGCONT)
        while Path(f"/proc/{stopped_engine}/stat").read_text().split()[2] == "T":
            await asyncio.sleep(0.01)
        with pytest.raises(EngineUnavailable, match=f"its process {stopped_engine} is busy or hangs"):
            await engine.request("DELETE", "/vms/web")


@pytest.mark.parametrize("when", ["before it starts", "while it prints"])
async def test_a_terminal_of_an_engine_that_falls_silent(
    home: Home, impatient: None, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    async def send(connection: ServerConnection) -> None:
        await connection.recv()
        if when != "before it starts":
            await connection.send('{"type": "started", "id": "p1", "pid": 7}')
            await connection.send(b"$ ")
        await connection.wait_closed()

    async def responds(self: EngineClient) -> bool:
        return False

    monkeypatch.setattr(EngineClient, "responds", responds)
    server = unix_serve(send, sock=sockets.listen(home.engine_socket))
    async with asyncio.timeout(10), server, EngineClient(home=home) as engine:
        with pytest.raises(EngineUnavailable, match="does not respond to the terminal"):
            async with open_terminal(engine, "web") as terminal:
                assert [data async for data in terminal.output()] == []


def test_a_silent_engine_is_given_up_within_half_a_minute() -> None:
    assert liveness.PROBE_TIMEOUT_S < liveness.SILENCE_S, "a probe that waits is not itself probed"
    assert liveness.SILENCE_S + liveness.PROBE_TIMEOUT_S * (1 + liveness.PROBES) < 30
    assert math.isfinite(httpclient._ANSWER_TIMEOUT_S)
