"""Terminals as the command line opens them."""

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection, serve

from squib.api.app import create_app
from squib.errors import (
    AgentUnreachable,
    CommandNotFound,
    EngineUnavailable,
    HostNotAllowed,
    InvalidArgument,
    NoShell,
    NoSuchProcess,
    NotFound,
    Unauthorized,
)
from squib.host import sockets
from squib.models import ExecRequest, PtySize
from squib.paths import Home
from squib.sdk.client import EngineClient
from squib.sdk.terminal import Attach, Terminal, open_terminal
from tests.fakes.engine import Rig
from tests.fakes.guest import running_vm
from tests.fakes.served import Served
from tests.fakes.sockets import serving

pytestmark = pytest.mark.slow  # each is a server


async def check(test: Callable[[EngineClient], Awaitable[None]]) -> None:
    async with asyncio.timeout(20), EngineClient() as engine:
        await test(engine)


async def until(terminal: Terminal, mark: bytes) -> bytes:
    output = b""
    async for data in terminal.output():
        output += data
        if mark in output:
            return output
    raise AssertionError(output)


@pytest.mark.anyio
async def test_a_login_shell_is_opened_typed_into_and_ends(served: Served) -> None:
    async def test(engine: EngineClient) -> None:
        async with open_terminal(engine, "web") as terminal:
            assert served.agent.processes[terminal.id].spec["pty"] == {"rows": 24, "cols": 80}
            assert terminal.pid == served.agent.processes[terminal.id].pid
            await until(terminal, b"$ ")
            with pytest.raises(AgentUnreachable, match="before the command exited"):
                _ = terminal.end
            await terminal.resize(50, 132)
            await until(terminal, b"[50x132]")
            await terminal.send(b"\xff" * 600_000)
            await terminal.send(b"exit 7\r")
            rest = b"".join([data async for data in terminal.output()])
            assert rest == b"\xff" * 600_000 + b"exit 7\r"
            assert (terminal.end.exit_code, terminal.offset) == (7, 2 + 8 + 600_000 + 7)
            await terminal.send(b"late")
            await terminal.resize(1, 1)

    await check(test)


@pytest.mark.anyio
async def test_what_was_asked_for_is_what_the_guest_gets(served: Served) -> None:
    async def test(engine: EngineClient) -> None:
        request = ExecRequest(
            argv=["tty"], user="u", sudo=True, env={"A": "\udcff"}, cwd="/", timeout_s=60, pty=PtySize(rows=5, cols=6)
        )
        async with open_terminal(engine, "web", request) as terminal:
            assert served.agent.processes[terminal.id].spec == {
                "argv": ["tty"], "user": "u", "sudo": True, "env": {"A": "\udcff"}, "cwd": "/", "timeout_ms": 60_000,
                "pty": {"rows": 5, "cols": 6}, "background": True,
            }  # fmt: skip
            await terminal.signal(15)
            async for _ in terminal.output():
                pass
            assert (terminal.end.exit_code, terminal.end.signal) == (143, 15)

    await check(test)


@pytest.mark.anyio
async def test_a_terminal_is_left_and_joined_again_where_it_was(served: Served) -> None:
    async def test(engine: EngineClient) -> None:
        async with open_terminal(engine, "web") as terminal:
            await until(terminal, b"$ ")
        assert terminal.offset == 2
        async with open_terminal(engine, "web", Attach(terminal.id, terminal.offset)) as again:
            await again.send(b"more")
            assert await until(again, b"more") == b"more"
            assert again.offset == 6
        size = PtySize(rows=40, cols=90)
        async with open_terminal(engine, "web", Attach(terminal.id, size=size)) as whole:
            assert await until(whole, b"]") == b"$ more[40x90]"
        async with open_terminal(engine, "web", Attach(terminal.id, 1000)) as past:
            assert past.offset == 1000

    await check(test)


@pytest.mark.anyio
async def test_what_cannot_be_opened_says_why(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.agent, "no_shell", True)

    async def test(engine: EngineClient) -> None:
        for ref, what, error in (
            ("web", None, NoShell),
            ("web", ExecRequest(argv=["nosuch"]), CommandNotFound),
            ("web", Attach("p999999"), NoSuchProcess),
            ("web", Attach("p1", -1), InvalidArgument),
            ("web", Attach("../p1"), InvalidArgument),
            ("nosuch", None, NotFound),
            ("..", None, InvalidArgument),
        ):
            with pytest.raises(error):
                async with open_terminal(engine, ref, what):
                    pytest.fail("it was opened")

    await check(test)


@pytest.mark.anyio
async def test_a_command_that_is_lost_is_told(served: Served) -> None:
    async def test(engine: EngineClient) -> None:
        with pytest.raises(AgentUnreachable):
            async with open_terminal(engine, "web", ExecRequest(argv=["garbage"])) as terminal:
                async for _ in terminal.output():
                    pass

    await check(test)


@pytest.mark.anyio
async def test_an_engine_is_started_where_none_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUIB_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("squib.sdk.terminal.PAUSES_S", (0.0, 0.0))
    started: list[Path] = []

    async def ensure(home: object) -> None:
        started.append(Path(str(home.root)))  # type: ignore[attr-defined]

    monkeypatch.setattr("squib.sdk.terminal.ensure_engine", ensure)

    async def test(engine: EngineClient) -> None:
        with pytest.raises(EngineUnavailable, match="cannot open a terminal"):
            async with open_terminal(engine, "web"):
                pytest.fail("it was opened")

    await check(test)
    assert started == [tmp_path / "home"] * 2


@pytest.mark.anyio
async def test_an_engine_in_a_deep_directory_is_reached(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = Rig(rig.home.root / ("d" * 60) / ("e" * 60))
    monkeypatch.setenv("SQUIB_HOME", str(deep.home.root))

    assert len(os.fsencode(deep.home.engine_socket)) > 107
    async with (
        asyncio.timeout(20),
        deep.engine() as engine,
        running_vm(engine, deep.config),
        serving(create_app(engine), sockets.listen(deep.home.engine_socket)),
        EngineClient() as client,
        open_terminal(client, "web") as terminal,
    ):
        await until(terminal, b"$ ")


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("token", "hosts", "error"),
    [("right", ["127.0.0.1"], None), ("wrong", ["127.0.0.1"], Unauthorized), ("right", ["other"], HostNotAllowed)],
)
async def test_a_remote_engine_is_reached_by_url_with_its_token(
    rig: Rig, listener: socket.socket, token: str, hosts: list[str], error: type[Exception] | None
) -> None:
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"

    async with (
        asyncio.timeout(20),
        rig.engine() as engine,
        running_vm(engine, rig.config) as agent,
        serving(create_app(engine, allowed_hosts=hosts, token="right"), listener),
        EngineClient(url=url, token=token) as client,
    ):
        if error:
            with pytest.raises(error):
                async with open_terminal(client, "web"):
                    pytest.fail("it was opened")
            assert agent.processes == {}
            return
        async with open_terminal(client, "web") as terminal:
            await until(terminal, b"$ ")


@pytest.mark.anyio
async def test_a_remote_engine_that_does_not_answer(listener: socket.socket) -> None:
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()

    async with EngineClient(url=url) as client:
        with pytest.raises(EngineUnavailable, match="cannot open a terminal"):
            async with open_terminal(client, "web"):
                pytest.fail("it was opened")


@pytest.mark.anyio
async def test_a_connection_that_is_lost_says_that_the_command_goes_on(rig: Rig, listener: socket.socket) -> None:
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"

    async with (
        asyncio.timeout(20),
        rig.engine() as engine,
        running_vm(engine, rig.config),
        EngineClient(url=url) as client,
    ):
        async with serving(create_app(engine, allowed_hosts=["127.0.0.1"]), listener):
            opening = open_terminal(client, "web")
            terminal = await opening.__aenter__()
            await until(terminal, b"$ ")
        with pytest.raises(EngineUnavailable) as caught:
            async for _ in terminal.output():
                pass
        assert "squib attach" in caught.value.hint
        with pytest.raises(EngineUnavailable):
            await terminal.send(b"x")
        await opening.__aexit__(None, None, None)


@pytest.mark.anyio
async def test_input_for_an_engine_that_has_just_died_is_not_taken_for_sent(tmp_path: Path) -> None:
    """The engine's socket is closed, and the client has not noticed yet."""
    home = Home(tmp_path)
    home.engine_socket.parent.mkdir(parents=True, exist_ok=True)
    accepted: list[ServerConnection] = []

    async def answer(connection: ServerConnection) -> None:
        accepted.append(connection)
        await connection.recv()
        await connection.send(json.dumps({"type": "started", "id": "p1", "pid": 1}))
        await connection.wait_closed()

    async with (
        asyncio.timeout(20),
        serve(answer, sock=sockets.listen(home.engine_socket)),
        EngineClient(home=home) as client,
        open_terminal(client, "web") as terminal,
    ):
        accepted[0].transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)  # now, while this task runs
        with pytest.raises(EngineUnavailable, match="broke"):
            await terminal.send(b"x")
        assert terminal.unreceived == b"x"


@pytest.mark.anyio
async def test_input_that_an_engine_never_read_is_known(tmp_path: Path) -> None:
    """As of an engine that is being killed: its socket is still open, and takes what nobody will read."""
    home = Home(tmp_path)
    home.engine_socket.parent.mkdir(parents=True, exist_ok=True)

    async def answer(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.send(json.dumps({"type": "started", "id": "p1", "pid": 1, "acknowledges": True}))
        first = await connection.recv()
        await connection.send(json.dumps({"type": "received", "bytes": len(first)}))
        await connection.close()

    async with (
        asyncio.timeout(20),
        serve(answer, sock=sockets.listen(home.engine_socket)),
        EngineClient(home=home) as client,
        open_terminal(client, "web") as terminal,
    ):
        await terminal.send(b"first")
        await terminal.send(b"second")
        with pytest.raises(EngineUnavailable):
            async for _ in terminal.output():
                pass
        assert terminal.unreceived == b"second"


@pytest.mark.anyio
async def test_input_is_acknowledged(served: Served) -> None:
    async def test(engine: EngineClient) -> None:
        async with open_terminal(engine, "web") as terminal:
            await until(terminal, b"$ ")
            await terminal.send(b"ab")
            assert terminal.unreceived == b"ab"
            await until(terminal, b"ab")
            assert terminal.unreceived == b""

    await check(test)
