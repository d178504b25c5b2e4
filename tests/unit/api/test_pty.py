"""Terminals over a WebSocket: a real server on a unix socket, clients that are not ours, and a guest of the tests."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import ConnectionClosed

from squib.api.app import create_app
from squib.api.connections import MAX_MESSAGE_BYTES
from squib.api.routes import pty
from squib.core.engine import Engine
from squib.core.guestio.exec import start_exec
from squib.core.lifecycle.pause import pause_vm, resume_vm
from squib.host import sockets
from squib.models import ExecRequest
from tests.fakes.agent import FakeAgent
from tests.fakes.asgi import Handshake
from tests.fakes.engine import Rig
from tests.fakes.guest import running_vm
from tests.fakes.sockets import BINARY, CLOSE, TEXT, RawSocket, serving

pytestmark = [pytest.mark.anyio, pytest.mark.slow]  # each is an engine, a server and a VM

PATH = "/v1/vms/web/pty"
START = {"type": "start"}


class Rack:
    """A served engine whose VM ``web`` has ``agent``."""

    def __init__(self, rig: Rig, engine: Engine, agent: FakeAgent) -> None:
        self.rig, self.engine, self.agent = rig, engine, agent

    def connect(self, path: str = PATH, **options: Any) -> Any:
        return unix_connect(str(self.rig.home.engine_socket), f"ws://squib{path}", compression=None, **options)


@contextlib.asynccontextmanager
async def served(rig: Rig) -> AsyncIterator[Rack]:
    async with (
        asyncio.timeout(20),
        rig.engine() as engine,
        running_vm(engine, rig.config) as agent,
        serving(create_app(engine), sockets.listen(rig.home.engine_socket)),
    ):
        yield Rack(rig, engine, agent)


async def tell(client: ClientConnection, message: object) -> None:
    await client.send(json.dumps(message))


async def answer(client: ClientConnection) -> Any:
    message = await client.recv()
    return json.loads(message) if isinstance(message, str) else message


async def until(client: ClientConnection, mark: bytes) -> bytes:
    output = b""
    while mark not in output:
        message = await client.recv()
        assert isinstance(message, bytes), message
        output += message
    return output


async def rest(client: ClientConnection) -> tuple[list[Any], int]:
    """What comes until the server closes the connection, and the code of its close."""
    messages = []
    try:
        while True:
            messages.append(await answer(client))
    except ConnectionClosed as closed:
        assert closed.rcvd
        return messages, closed.rcvd.code


async def left(agent: FakeAgent, process_id: str = "p1", readers: int = 0) -> None:
    while len(agent.processes[process_id].readers) != readers:
        await asyncio.sleep(0.005)


async def refused(client: ClientConnection) -> Any:
    messages, code = await rest(client)
    assert code == 1011
    assert messages[-1]["type"] == "error"
    return messages[-1]["error"]


async def test_what_is_typed_while_the_vm_is_paused_arrives_when_it_goes_on(rig: Rig) -> None:
    async with served(rig) as rack, rack.connect() as client:
        await tell(client, START)
        await answer(client)
        await until(client, b"$ ")
        await pause_vm(rack.engine, "web")
        await client.send(b"typed ")
        await tell(client, {"type": "resize", "rows": 50, "cols": 132})
        await (await client.ping())
        await resume_vm(rack.engine, "web")
        await until(client, b"[50x132]")
        await client.send(b"exit 7\r")
        messages, code = await rest(client)
        assert (messages[-1]["exit_code"], code) == (7, 1000)


async def test_a_terminal_from_its_start_to_its_end(rig: Rig) -> None:
    async with served(rig) as rack:
        async with rack.connect() as client:
            await tell(client, START | {"rows": 30, "cols": 100, "env": {"A": "1"}, "user": "u"})
            assert await answer(client) == {"type": "started", "id": "p1", "pid": 101}
            await until(client, b"$ ")
            await tell(client, {"type": "resize", "rows": 50, "cols": 132})
            await until(client, b"[50x132]")
            await client.send(b"\x00\xff")
            await tell(client, {"type": "input", "data": "é\udcfe"})
            await until(client, b"\x00\xff\xc3\xa9\xfe")
            await client.send(b"exit 7\r")
            messages, code = await rest(client)
            end = {"type": "exit", "exit_code": 7, "signal": None, "timed_out": False, "duration_s": 0.001}
            assert (messages[-1], code) == (end, 1000)
            assert b"".join(messages[:-1]) == b"exit 7\r"
        assert rack.agent.processes["p1"].spec == {
            "login": True, "background": True, "pty": {"rows": 30, "cols": 100}, "env": {"A": "1"}, "user": "u",
        }  # fmt: skip


async def test_a_client_made_by_hand(rig: Rig) -> None:
    async with served(rig):
        raw = RawSocket(*await asyncio.open_unix_connection(str(rig.home.engine_socket)))
        await raw.shake_hands(PATH)
        assert raw.status == 101
        raw.send(TEXT, b'{"type": "start", "argv": ["tty"], "rows": 24, "cols": 80}')
        assert await raw.receive() == (TEXT, b'{"type": "started", "id": "p1", "pid": 101}')
        assert await raw.receive() == (BINARY, b"$ ")
        raw.send(BINARY, b"x" * 70_000)
        echoed = b""
        while len(echoed) < 70_000:
            kind, data = await raw.receive()
            assert kind == BINARY
            echoed += data
        raw.send(BINARY, b"exit 3\r")
        assert await raw.receive() == (BINARY, b"exit 3\r")
        kind, message = await raw.receive()
        assert (kind, json.loads(message)["exit_code"]) == (TEXT, 3)
        assert await raw.receive() == (CLOSE, (1000).to_bytes(2, "big"))
        raw.send(CLOSE, (1000).to_bytes(2, "big"))
        assert await raw.reader.read() == b""
        raw.writer.close()


async def test_a_terminal_outlives_its_client_and_is_attached_to_with_its_scrollback(rig: Rig) -> None:
    async with served(rig) as rack:
        async with rack.connect() as client:
            await tell(client, START)
            assert (await answer(client))["id"] == "p1"
            await until(client, b"$ ")
            await client.send(b"first")
            await until(client, b"first")
        await left(rack.agent)
        assert rack.agent.killed == []
        async with rack.connect() as client:
            await tell(client, {"type": "attach", "id": "p1", "rows": 40, "cols": 90})
            assert await answer(client) == {"type": "attached", "id": "p1", "pid": 101}
            assert await answer(client) == {"type": "offset", "offset": 0}
            assert await until(client, b"[40x90]") == b"$ first[40x90]"
        async with rack.connect() as client:
            await tell(client, {"type": "attach", "id": "p1", "offset": 4})
            await answer(client)
            assert await answer(client) == {"type": "offset", "offset": 4}
            assert await until(client, b"[40x90]") == b"rst[40x90]"


async def test_an_ended_terminal_shows_its_output_and_its_end(rig: Rig) -> None:
    async with served(rig) as rack:
        for message in ({"type": "start", "argv": ["echo", "a"]}, {"type": "attach", "id": "p1", "rows": 9, "cols": 9}):
            async with rack.connect() as client:
                await tell(client, message)
                messages, code = await rest(client)
                assert (messages[-2], messages[-1]["exit_code"], code) == (b"a\n", 0, 1000)


async def test_several_clients_of_one_terminal_see_and_type_the_same(rig: Rig) -> None:
    async with served(rig) as rack, rack.connect() as one, rack.connect() as two:
        await tell(one, START)
        await answer(one)
        await until(one, b"$ ")
        await tell(two, {"type": "attach", "id": "p1", "offset": 2})
        await answer(two)
        await left(rack.agent, readers=2)
        await one.send(b"one;")
        await until(one, b"one;")
        await two.send(b"two;")
        await until(one, b"two;")
        assert await answer(two) == {"type": "offset", "offset": 2}
        assert await until(two, b"two;") == b"one;two;"
        await tell(two, {"type": "signal", "signal": 15})
        for client in (one, two):
            messages, code = await rest(client)
            assert (messages[-1]["exit_code"], messages[-1]["signal"], code) == (143, 15, 1000)


async def test_what_was_typed_before_the_client_left_is_still_written(rig: Rig) -> None:
    async with served(rig) as rack:
        async with rack.connect() as client:
            await tell(client, START)
            await answer(client)
            rack.agent.typing.clear()
            await client.send(b"last ")
            await client.send(b"words")
        rack.agent.typing.set()
        async with rack.connect() as client:
            await tell(client, {"type": "attach", "id": "p1"})
            await answer(client), await answer(client)
            assert await until(client, b"words") == b"$ last words"


async def test_keys_that_come_while_others_are_written_go_together_and_in_order(rig: Rig) -> None:
    async with served(rig) as rack, rack.connect() as client:
        await tell(client, START)
        await answer(client)
        rack.agent.typing.clear()
        keys = [b"%03d." % number for number in range(200)]
        for key in keys:
            await client.send(key)
        await tell(client, {"type": "resize", "rows": 5, "cols": 5})
        await until(client, b"[5x5]")  # all keys have come to the engine
        rack.agent.typing.set()
        assert await until(client, b"199.") == b"".join(keys)
        assert len(rack.agent.writes) <= 2


async def test_input_that_the_terminal_does_not_take_stops_the_client(rig: Rig) -> None:
    piece, count = b"k" * (1 << 16), 200
    sent = 0

    async with served(rig) as rack:

        async def send(client: ClientConnection) -> None:
            nonlocal sent
            for _ in range(count):
                await client.send(piece)
                sent += 1

        async with rack.connect(ping_interval=None) as client:
            await tell(client, START)
            await answer(client)
            rack.agent.typing.clear()
            sending = asyncio.create_task(send(client))
            before = -1
            while sent != before:
                before = sent
                await asyncio.sleep(0.2)
            assert 0 < sent < count / 4
            rack.agent.typing.set()
            echoed = 0
            while echoed < count * len(piece):
                message = await client.recv()
                assert isinstance(message, bytes)
                echoed += message.count(b"k")
            await sending


async def test_a_client_that_does_not_read_stops_the_writer_and_loses_nothing(rig: Rig) -> None:
    kib = 8 << 10

    async with served(rig) as rack:
        raw = RawSocket(*await asyncio.open_unix_connection(str(rig.home.engine_socket), limit=1 << 12))
        await raw.shake_hands(PATH)
        raw.send(TEXT, json.dumps({"type": "start", "argv": ["flood", str(kib)]}).encode())
        await raw.receive()
        process = rack.agent.processes["p1"]
        before = -1
        while process.total != before:
            before = process.total
            await asyncio.sleep(0.2)
        assert process.exit is None and process.total < 4 << 20
        received = bytearray()
        while len(received) < kib << 10:
            kind, data = await raw.receive()
            assert kind == BINARY
            received += data
        assert received == b"".join(b"%01023d\n" % number for number in range(kib))
        raw.writer.transport.abort()


async def test_a_client_that_dies_leaves_the_terminal(rig: Rig) -> None:
    async with served(rig) as rack:
        for argv in (["tty"], ["spam"]):
            raw = RawSocket(*await asyncio.open_unix_connection(str(rig.home.engine_socket)))
            await raw.shake_hands(PATH)
            raw.send(TEXT, json.dumps({"type": "start", "argv": argv}).encode())
            _, started = await raw.receive()
            process_id = json.loads(started)["id"]
            await left(rack.agent, process_id, readers=1)
            assert rack.engine._requests == 1
            raw.writer.transport.abort()
            await left(rack.agent, process_id)
            assert rack.agent.processes[process_id].exit is None
        assert rack.agent.killed == []
        while rack.engine._requests:
            await asyncio.sleep(0.005)


async def test_a_client_that_goes_before_it_knows_the_id_leaves_nothing(rig: Rig) -> None:
    async with asyncio.timeout(20), rig.engine() as engine, running_vm(engine, rig.config) as agent:
        handshake = Handshake(PATH, messages=[json.dumps(START)], goes_at="started")
        await handshake.send_to(create_app(engine))
        assert (agent.killed, agent.processes) == (["p1"], {})


async def test_a_silent_terminal_says_from_time_to_time_that_it_is_there(rig: Rig) -> None:
    async with served(rig) as rack:
        rack.agent.idle_s = 0.01
        async with rack.connect() as client:
            await tell(client, START | {"argv": ["sleep"]})
            await answer(client)
            assert [await client.recv() for _ in range(3)] == [b"", b"", b""]


@pytest.mark.parametrize(
    ("message", "code", "words"),
    [
        (START | {"argv": ["nosuch"]}, "command_not_found", "nosuch"),
        (START | {"shell": "a", "argv": ["a"]}, "invalid_argument", "exactly one"),
        (START | {"rows": 0}, "invalid_argument", "pty.rows"),
        (START | {"pty": {}}, "invalid_argument", "pty"),
        (START | {"background": False}, "invalid_argument", "background"),
        (START | {"nosuch": 1}, "invalid_argument", "nosuch"),
        (START | {"env": {"A": 13371337}}, "invalid_argument", "env.A"),
        ({"type": "attach", "id": "p9"}, "no_such_process", "p9"),
        ({"type": "attach", "id": "../p1"}, "invalid_argument", "id"),
        ({"type": "attach", "id": "p1", "offset": -1}, "invalid_argument", "offset"),
        ({"type": "attach", "id": "p1", "rows": 0}, "invalid_argument", "rows"),
        ({"type": "attach"}, "invalid_argument", "id"),
        ({"type": "resize", "rows": 1, "cols": 1}, "invalid_argument", "resize"),
        ({}, "invalid_argument", "type"),
        ([], "invalid_argument", "JSON object"),
        ("start", "invalid_argument", "JSON object"),
    ],
)
async def test_a_first_message_that_asks_for_nothing_possible(rig: Rig, message: object, code: str, words: str) -> None:
    async with served(rig) as rack:
        async with rack.connect() as client:
            await tell(client, message)
            error = await refused(client)
            assert error["code"] == code and words in error["message"]
            assert "13371337" not in json.dumps(error)
        assert rack.agent.processes == {}


@pytest.mark.parametrize("message", ["{", "[" * 100_000, b"\x00", b'{"type": "start"}', "NaN", '"' + "x" * 2000 + '"'])
async def test_a_first_message_that_is_no_object(rig: Rig, message: str | bytes) -> None:
    async with served(rig) as rack, rack.connect() as client:
        await client.send(message)
        assert (await refused(client))["code"] == "invalid_argument"


async def test_a_first_message_that_does_not_come(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pty, "_FIRST_MESSAGE_S", 0.05)

    async with served(rig) as rack, rack.connect() as client:
        assert "no message has come" in (await refused(client))["message"]


@pytest.mark.parametrize(
    "message",
    [
        {"type": "resize", "rows": 0, "cols": 80},
        {"type": "resize", "rows": 24},
        {"type": "signal", "signal": 65},
        {"type": "input", "data": 7},
        {"type": "input", "data": "\ud800"},
        {"type": "start"},
    ],
)
async def test_a_later_message_that_is_none_ends_the_connection_not_the_terminal(rig: Rig, message: object) -> None:
    async with served(rig) as rack:
        async with rack.connect() as client:
            await tell(client, START)
            await answer(client)
            await until(client, b"$ ")
            await tell(client, message)
            assert (await refused(client))["code"] == "invalid_argument"
        await left(rack.agent)
        assert rack.agent.processes["p1"].exit is None


async def test_a_message_over_the_limit_ends_the_connection_not_the_terminal(rig: Rig) -> None:
    async with served(rig) as rack:
        async with rack.connect() as client:
            await tell(client, START)
            await answer(client)
            await until(client, b"$ ")
            with contextlib.suppress(ConnectionClosed):
                await client.send(bytes(MAX_MESSAGE_BYTES + 1))
            assert await rest(client) == ([], 1009)
        await left(rack.agent)
        assert rack.agent.processes["p1"].exit is None


async def test_an_image_without_a_shell_says_so(rig: Rig) -> None:
    async with served(rig) as rack:
        rack.agent.no_shell = True
        async with rack.connect() as client:
            await tell(client, START)
            error = await refused(client)
            assert (error["code"], bool(error["hint"])) == ("no_shell", True)


async def test_a_process_without_a_terminal_is_not_attached_to(rig: Rig) -> None:
    async with served(rig) as rack:
        command = await start_exec(rack.engine, "web", ExecRequest(argv=["sleep"], background=True))
        async with rack.connect() as client:
            await tell(client, {"type": "attach", "id": "p1"})
            assert (await refused(client))["code"] == "no_terminal"
        command.close()


async def test_a_vm_that_is_not_there_and_one_that_does_not_run(rig: Rig) -> None:
    async with served(rig) as rack, rack.connect("/v1/vms/nosuch/pty") as client:
        await tell(client, START)
        assert (await refused(client))["code"] == "not_found"


async def test_a_guest_that_sends_nonsense_ends_the_connection(rig: Rig) -> None:
    async with served(rig) as rack, rack.connect() as client:
        await tell(client, START | {"argv": ["garbage"]})
        assert (await refused(client))["code"] == "agent_protocol_error"


async def test_a_guest_that_is_lost_is_told(rig: Rig) -> None:
    async with served(rig) as rack, rack.connect() as client:
        await tell(client, START)
        await answer(client)
        await until(client, b"$ ")
        await rack.engine.running[rack.engine.store.get_vm("web").vm_id].agent.close()
        error = await refused(client)
        assert (error["code"], "lost" in error["message"]) == ("agent_lost", True)


async def test_an_engine_that_ends_closes_the_connection(rig: Rig) -> None:
    async with asyncio.timeout(20), rig.engine() as engine, running_vm(engine, rig.config) as agent:
        rack = Rack(rig, engine, agent)
        async with serving(create_app(engine), sockets.listen(rig.home.engine_socket), end_in_order=True):
            client = await rack.connect()
            await tell(client, START)
            await answer(client)
            await until(client, b"$ ")
        assert await rest(client) == ([], 1012)
        await left(agent)
