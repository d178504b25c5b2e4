"""The handshake, from the host's end (``protocol/agent.md`` §2)."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from squib.errors import AgentLost, AgentTimeout, AgentVersionMismatch
from squib.guest.budget import LoopBudget
from squib.guest.channel import MAX_FRAME_BYTES, open_channel
from squib.host import sockets
from tests.fakes.guest import connector

pytestmark = pytest.mark.anyio

Guest = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def with_guest(path: Path, guest: Guest, *, timeout_s: float = 5.0, retry_s: float = 0.05) -> bytes:
    """Shake hands with ``guest`` and return what it sent after the handshake, up to its first newline."""
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await guest(reader, writer)
        finally:
            writer.close()
            ended.set()

    server = await asyncio.start_unix_server(serve, sock=sockets.listen(path))
    try:
        connection, received = await open_channel(connector(path), LoopBudget(), timeout_s=timeout_s, retry_s=retry_s)
        with connection:
            async with asyncio.timeout(5):
                while b"\n" not in received:
                    received += await asyncio.get_running_loop().sock_recv(connection, 100)
            return received
    finally:
        await asyncio.wait_for(ended.wait(), 5)
        server.close()
        await asyncio.sleep(0)  # lets the transport finish closing


async def read_sync(reader: asyncio.StreamReader) -> bytes:
    line = await reader.readuntil(b"\n")
    while b"SQUIB-SYNC 1 " not in line:
        line = await reader.readuntil(b"\n")
    return line.split()[-1]


async def test_the_bytes_after_go_belong_to_the_session(tmp_path: Path) -> None:
    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonce = await read_sync(reader)
        writer.write(b"SQUIB-OK 1 %s\n" % nonce)
        assert await reader.readuntil(b"\n") == b"SQUIB-GO 1 %s\n" % nonce
        writer.write(b"session\n")

    assert await with_guest(tmp_path / "s", guest, retry_s=5) == b"session\n"


@pytest.mark.parametrize(
    "stale", [b"\x00\x01binary", b"SQUIB-OK 1 " + b"0" * 32 + b"\n", b"x" * 300_000 + b"\n", b"\n\n"]
)
async def test_bytes_of_a_dead_session_are_discarded(tmp_path: Path, stale: bytes) -> None:
    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonce = await read_sync(reader)
        writer.write(stale + b"SQUIB-OK 1 %s\n" % nonce)
        await reader.readuntil(b"\n")
        writer.write(b"clean\n")

    assert await with_guest(tmp_path / "s", guest, retry_s=5) == b"clean\n"


async def test_what_comes_with_the_answer_belongs_to_the_session(tmp_path: Path) -> None:
    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SQUIB-OK 1 %s\nfirst\x00\nsecond" % await read_sync(reader))
        await reader.readuntil(b"\n")

    assert await with_guest(tmp_path / "s", guest, retry_s=5) == b"first\x00\nsecond"


async def test_a_guest_that_does_not_respond_is_flushed_out_of_its_old_connection(tmp_path: Path) -> None:
    seen = bytearray()

    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_sync(reader)  # eaten by an old session: no answer
        flush = await reader.readexactly(MAX_FRAME_BYTES + 9)
        seen.extend(flush)
        nonce = await read_sync(reader)
        writer.write(b"SQUIB-OK 1 %s\n" % nonce)
        await reader.readuntil(b"\n")
        writer.write(b"again\n")

    assert await with_guest(tmp_path / "s", guest) == b"again\n"
    assert set(seen) == {0xFF}


async def test_only_the_last_nonce_counts(tmp_path: Path) -> None:
    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await read_sync(reader)
        await reader.readexactly(MAX_FRAME_BYTES + 9)
        second = await read_sync(reader)
        writer.write(b"SQUIB-OK 1 %s\nSQUIB-OK 1 %s\n" % (first, second))
        go = await reader.readuntil(b"\n")
        writer.write(b"second\n" if go.split()[-1] == second else b"first\n")

    assert await with_guest(tmp_path / "s", guest) == b"second\n"


async def test_a_guest_that_does_not_respond_after_the_flush_gets_a_new_connection(tmp_path: Path) -> None:
    """QEMU 7.2 loses what a guest sends if its port was closed while the VM was paused; a new connection heals it."""
    connections = 0

    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        if connections == 1:
            while await reader.read(1 << 16):
                pass
            return
        nonce = await read_sync(reader)
        writer.write(b"SQUIB-OK 1 %s\n" % nonce)
        await reader.readuntil(b"\n")
        writer.write(b"healed\n")

    assert await with_guest(tmp_path / "s", guest) == b"healed\n"


async def test_another_version_is_named(tmp_path: Path) -> None:
    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SQUIB-OK 7 %s\n" % await read_sync(reader))

    with pytest.raises(AgentVersionMismatch, match="protocol 7"):
        await with_guest(tmp_path / "s", guest, retry_s=5)


async def test_a_guest_that_never_answers_is_given_up(tmp_path: Path) -> None:
    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    with pytest.raises(AgentTimeout, match=r"within 0\.2 s"):
        await with_guest(tmp_path / "s", guest, timeout_s=0.2)


async def test_a_guest_that_closes_a_connection_gets_a_new_one(tmp_path: Path) -> None:
    connections = 0

    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        nonce = await read_sync(reader)
        if connections == 3:
            writer.write(b"SQUIB-OK 1 %s\n" % nonce)
            await reader.readuntil(b"\n")
            writer.write(b"third\n")

    assert await with_guest(tmp_path / "s", guest, retry_s=5) == b"third\n"


async def test_a_port_that_closes_is_unreachable(tmp_path: Path) -> None:
    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    with pytest.raises(AgentLost, match="closed"):
        await with_guest(tmp_path / "s", guest)


async def test_no_port_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(AgentLost, match="cannot connect to the guest agent: No such file"):
        await open_channel(connector(tmp_path / "none"), LoopBudget(), timeout_s=1)


@pytest.mark.parametrize("flood", [b"\n", b"x", b"SQUIB-OK 1 \n"])
async def test_a_flood_during_the_handshake_does_not_stop_the_event_loop(flood: bytes) -> None:
    host, guest = socket.socketpair()
    host.setblocking(False)
    connections = [host]

    def send() -> None:
        with guest, contextlib.suppress(OSError):
            while True:
                guest.sendall(flood * 10_000)

    async def connect() -> socket.socket:
        if not connections:
            raise ConnectionRefusedError
        return connections.pop()

    flooding = asyncio.create_task(asyncio.to_thread(send))
    with pytest.raises(AgentLost):
        await open_channel(connect, LoopBudget(), timeout_s=5, retry_s=0.2)
    await flooding
