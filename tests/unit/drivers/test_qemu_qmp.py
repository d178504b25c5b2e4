"""The monitor's client against a server that answers, refuses, hangs and dies."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from squib.drivers.qemu.qmp import QMP
from squib.errors import ToolFailed
from squib.host import sockets
from tests.fakes.qemu import GREETING, CommandDecoder


class FakeMonitor:
    """QEMU's end of one session. ``quiet``: commands that get no answer."""

    def __init__(self, *, greet: bool = True, quiet: tuple[str, ...] = ()) -> None:
        self.greet = greet
        self.quiet = quiet
        self.commands: list[str] = []
        self.writer: asyncio.StreamWriter | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        if self.greet:
            self.send(GREETING)
        with contextlib.suppress(ConnectionError):
            decoder = CommandDecoder()
            while data := await reader.read(65536):
                for command in decoder.feed(data):
                    self.answer(command)
        writer.close()

    def answer(self, command: dict[str, Any]) -> None:
        name, reply = command["execute"], {"id": command.get("id")}
        self.commands.append(name)
        if name in self.quiet:
            return
        if name == "refuse":
            self.send(reply | {"error": {"class": "GenericError", "desc": "no such device"}})
        elif name == "hang up":
            assert self.writer
            self.writer.close()
        else:
            self.send(reply | {"return": {"echo": command.get("arguments", {})}})

    def send(self, message: dict[str, Any]) -> None:
        assert self.writer
        self.writer.write(json.dumps(message).encode() + b"\n")


@contextlib.asynccontextmanager
async def serving(path: Path, monitor: FakeMonitor) -> AsyncIterator[None]:
    server = await asyncio.start_unix_server(monitor.serve, sock=sockets.listen(path))
    try:
        yield
    finally:
        server.close()
        if monitor.writer:
            monitor.writer.transport.abort()
        await asyncio.sleep(0)


async def check(path: Path, monitor: FakeMonitor, test: Callable[[QMP], Awaitable[None]]) -> None:
    """Run ``test`` with a session to ``monitor``; afterwards nothing of the session is left in the loop."""

    async with asyncio.timeout(10), serving(path, monitor):
        qmp = await QMP.connect(path)
        await test(qmp)
        qmp.close()
        qmp.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "qmp.sock"


@pytest.mark.anyio
async def test_commands_are_answered(path: Path) -> None:
    async def test(qmp: QMP) -> None:
        assert await qmp.execute("query-status", {"a": 1}) == {"echo": {"a": 1}}

    await check(path, FakeMonitor(), test)


@pytest.mark.anyio
async def test_a_refusal_is_an_error_with_qemus_words(path: Path) -> None:
    async def test(qmp: QMP) -> None:
        with pytest.raises(ToolFailed, match="refuse: no such device"):
            await qmp.execute("refuse")
        assert await qmp.execute("go on")

    await check(path, FakeMonitor(), test)


@pytest.mark.anyio
async def test_a_qemu_that_hangs_costs_a_timeout(path: Path) -> None:
    async def test(qmp: QMP) -> None:
        with pytest.raises(ToolFailed, match="did not respond to stop within"):
            await qmp.execute("stop", timeout_s=0.02)
        assert await qmp.execute("cont")

    await check(path, FakeMonitor(quiet=("stop",)), test)


@pytest.mark.anyio
async def test_a_qemu_that_ends_is_an_error_now_and_later(path: Path) -> None:
    async def test(qmp: QMP) -> None:
        for _ in range(2):
            with pytest.raises(ToolFailed):
                await qmp.execute("hang up")

    await check(path, FakeMonitor(), test)


@pytest.mark.anyio
async def test_a_monitor_that_says_nothing(path: Path) -> None:
    async with serving(path, FakeMonitor(greet=False)):
        with pytest.raises(ToolFailed, match="did not respond to the connection within"):
            await QMP.connect(path, timeout_s=0.02)


@pytest.mark.anyio
async def test_a_monitor_that_is_not_there(path: Path) -> None:
    with pytest.raises(ToolFailed, match="cannot be reached"):
        await QMP.connect(path)


@pytest.mark.anyio
async def test_a_monitor_that_hangs_up(path: Path) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_unix_server(hang_up, sock=sockets.listen(path))
    with pytest.raises(ToolFailed, match="closed its monitor"):
        await QMP.connect(path)
    server.close()


@pytest.mark.anyio
async def test_a_qemu_that_does_not_read_does_not_hold_up_closing(path: Path) -> None:
    async with by_hand(path) as (_, qmp):
        with pytest.raises(ToolFailed, match="did not respond to fill"):
            await qmp.execute("fill", {"bytes": "x" * (4 << 20)}, timeout_s=0.02)


@contextlib.asynccontextmanager
async def by_hand(path: Path) -> AsyncIterator[tuple[socket.socket, QMP]]:
    """A session whose other end is a blocking socket, with the handshake done."""
    loop = asyncio.get_running_loop()
    with sockets.listen(path) as server:
        server.setblocking(False)
        connecting = asyncio.create_task(QMP.connect(path))
        peer, _ = await loop.sock_accept(server)
    with peer:
        peer.sendall(json.dumps(GREETING).encode() + b"\r\n")
        command = json.loads(await loop.sock_recv(peer, 4096))
        peer.sendall(json.dumps({"return": {}, "id": command["id"]}).encode() + b"\r\n")
        qmp = await connecting
        peer.setblocking(True)
        try:
            yield peer, qmp
        finally:
            qmp.close()
            await asyncio.sleep(0)


@pytest.mark.anyio
async def test_the_reason_of_a_shutdown_is_remembered(path: Path) -> None:
    monitor = FakeMonitor()

    async def test(qmp: QMP) -> None:
        monitor.send({"event": "SHUTDOWN", "data": {"guest": True, "reason": "guest-reset"}, "timestamp": {}})
        with pytest.raises(ToolFailed):
            await qmp.execute("hang up")
        await qmp.drained()
        assert qmp.shutdown_reason == "guest-reset"

    await check(path, monitor, test)


@pytest.mark.anyio
async def test_events_between_a_command_and_its_answer(path: Path) -> None:
    event = b'{"event": "VSERPORT_CHANGE", "data": {"open": true, "id": "port"}, "timestamp": {}}\r\n'

    async with by_hand(path) as (peer, qmp):
        asking = asyncio.create_task(qmp.execute("query-status"))
        command = json.loads(await asyncio.to_thread(peer.recv, 4096))
        answer = json.dumps({"return": {"status": "running"}, "id": command["id"]}).encode() + b"\r\n"
        stream = event * 500 + answer + event * 500
        for start in range(0, len(stream), 1000):
            peer.sendall(stream[start : start + 1000])
            await asyncio.sleep(0)
        assert await asking == {"status": "running"}


@pytest.mark.anyio
async def test_an_answer_that_comes_too_late_is_dropped(path: Path) -> None:
    async with by_hand(path) as (peer, qmp):
        with pytest.raises(ToolFailed, match="did not respond to stop"):
            await qmp.execute("stop", timeout_s=0.01)
        late = json.loads(await asyncio.to_thread(peer.recv, 4096))
        asking = asyncio.create_task(qmp.execute("cont"))
        command = json.loads(await asyncio.to_thread(peer.recv, 4096))
        for number, value in ((late["id"], "late"), (command["id"], "right")):
            peer.sendall(json.dumps({"return": value, "id": number}).encode() + b"\r\n")
        assert await asking == "right"


@pytest.mark.parametrize("nonsense", [b"no JSON\r\n", b"\xff\n"])
@pytest.mark.anyio
async def test_nonsense_ends_the_session(path: Path, nonsense: bytes) -> None:
    async with by_hand(path) as (peer, qmp):
        asking = asyncio.create_task(qmp.execute("query-status"))
        await asyncio.to_thread(peer.recv, 4096)
        peer.sendall(nonsense)
        with pytest.raises(ToolFailed, match="closed its monitor"):
            await asking


@pytest.mark.anyio
async def test_a_qemu_that_ends_right_after_the_handshake(path: Path) -> None:
    async with by_hand(path) as (peer, qmp):
        peer.sendall(b'{"event": "SHUTDOWN", "data": {"reason": "guest-shutdown"}}\r\n')
        peer.close()
        await qmp.drained()
        assert qmp.shutdown_reason == "guest-shutdown"
        with pytest.raises(ToolFailed, match="closed its monitor"):
            await qmp.execute("query-status")


@pytest.mark.anyio
async def test_waiting_for_the_end_is_bounded(path: Path) -> None:
    async def test(qmp: QMP) -> None:
        await qmp.drained(timeout_s=0.01)
        assert await qmp.execute("query-status")

    await check(path, FakeMonitor(), test)
