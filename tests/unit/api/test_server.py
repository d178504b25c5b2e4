"""The engine as a process: who may connect to it, when it ends, and what it leaves."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import sys
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from squib.api import daemon, server
from squib.api.server import serve
from squib.api.tcp import TcpOptions
from squib.core import startup
from squib.core.lifecycle.create import create_vm
from squib.core.startup import open_engine
from squib.drivers.registry import Drivers
from squib.errors import BootFailed, EngineStartFailed, EngineUnavailable, InvalidArgument
from squib.models import EngineInfo
from squib.paths import Home
from squib.sdk.client import EngineClient
from tests.fakes.driver import FakeMachine
from tests.fakes.engine import Rig

pytestmark = pytest.mark.slow  # each is an engine

Ready = tuple[str | None, str | None]


@pytest.fixture(autouse=True)
def faked(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def find_drivers(home: Home) -> Drivers:
        return Drivers.of(rig.driver)

    monkeypatch.setattr(server, "find_drivers", find_drivers)
    monkeypatch.setattr(server, "open_engine", partial(open_engine, agent_binary=rig.agent_binary))
    monkeypatch.setattr(server, "_IDLE_POLL_S", 0.01)
    monkeypatch.setattr(asyncio, "sleep", partial(_sleep_at_most, asyncio.sleep))


async def _sleep_at_most(sleep: Callable[[float], Awaitable[None]], delay: float) -> None:
    """uvicorn looks every 0.1 s whether it should end."""
    await sleep(min(delay, 0.005))


@asynccontextmanager
async def serving(home: Home, **options: object):  # type: ignore[no-untyped-def]
    """An engine that answers; it is asked to stop at the end of the block, if it has not."""
    ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
    served = serve(home, on_ready=lambda url, token: ready.set_result((url, token)), **options)  # type: ignore[arg-type]
    task = asyncio.create_task(served)
    async with asyncio.timeout(20):
        await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        yield task, ready.result()
        if not task.done():
            os.kill(os.getpid(), signal.SIGTERM)
        await task


def client(home: Home) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(home.engine_socket)), base_url="http://squib")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.anyio
async def test_it_answers_on_a_socket_that_only_its_user_may_use(rig: Rig) -> None:
    async with asyncio.timeout(20):
        umask = os.umask(0)
        try:
            async with serving(rig.home) as (_, ready), client(rig.home) as http:
                assert ready == (None, None)
                assert EngineInfo.model_validate((await http.get("/v1/engine")).json()).pid == os.getpid()
                assert (mode(rig.home.engine_socket), mode(rig.home.root)) == (0o600, 0o700)
        finally:
            os.umask(umask)


@pytest.mark.anyio
async def test_a_state_directory_that_others_may_read_is_closed_to_them(rig: Rig) -> None:
    async with asyncio.timeout(20):
        rig.home.root.mkdir()
        rig.home.root.chmod(0o755)
        async with serving(rig.home):
            assert mode(rig.home.root) == 0o700


@pytest.mark.anyio
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_and_it_leaves_no_socket(rig: Rig, number: int) -> None:
    async with asyncio.timeout(20):
        async with serving(rig.home) as (task, _):
            os.kill(os.getpid(), number)
            await task
            assert not rig.home.engine_socket.exists()


@pytest.mark.anyio
async def test_vms_go_on_when_it_ends_and_are_there_for_the_next(rig: Rig) -> None:
    async with asyncio.timeout(20):
        async with serving(rig.home), client(rig.home) as http:
            body = {"config": rig.config.model_dump(exclude_unset=True) | {"name": "web"}, "start": True}
            assert (await http.post("/v1/vms", json=body)).status_code == 201
        [pid] = rig.vmms()
        async with serving(rig.home), client(rig.home) as http:
            found = (await http.get("/v1/vms/web")).json()
            assert (found["state"], found["pid"]) == ("running", pid)


@pytest.mark.anyio
async def test_it_ends_when_nobody_has_needed_it_for_a_while(rig: Rig) -> None:
    async with asyncio.timeout(20):
        async with serving(rig.home, idle_exit_s=0.3) as (task, _):
            async with client(rig.home) as http:
                assert (await http.get("/v1/engine")).status_code == 200
            await task
            assert not rig.home.engine_socket.exists()


@pytest.mark.anyio
async def test_it_stays_while_a_vm_runs_and_ends_after_the_last(rig: Rig) -> None:
    async with asyncio.timeout(20):
        async with rig.engine() as first:
            await create_vm(
                first, rig.config.model_copy(update={"name": "web"}), start=True, on_progress=lambda _: None
            )
        async with serving(rig.home, idle_exit_s=0.01) as (task, _):
            with pytest.raises(TimeoutError):  # many times as long as it may be idle
                await asyncio.wait_for(asyncio.shield(task), 0.05)
            async with client(rig.home) as http:
                assert (await http.delete("/v1/vms/web")).status_code == 204
            await task


@pytest.mark.anyio
async def test_without_an_idle_time_it_stays(rig: Rig) -> None:
    async with asyncio.timeout(20):
        async with serving(rig.home) as (task, _):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(task), 0.05)


@pytest.mark.anyio
async def test_a_second_engine_is_refused_at_once_and_the_first_goes_on(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "_LOCK_TIMEOUT_S", 3600.0)

    async with asyncio.timeout(20):
        async with serving(rig.home), client(rig.home) as http:
            tcp = TcpOptions("127.0.0.1", 0)
            with pytest.raises(EngineStartFailed, match="another engine"):
                await serve(rig.home, tcp=tcp, on_ready=lambda url, token: pytest.fail("it is not ready"))
            assert (await http.get("/v1/engine")).status_code == 200


@pytest.mark.anyio
@pytest.mark.parametrize("left", ["socket", "file"])
async def test_what_a_killed_engine_left_in_the_sockets_place_is_replaced(rig: Rig, left: str) -> None:
    async with asyncio.timeout(20):
        rig.home.root.mkdir()
        if left == "socket":
            with socket.socket(socket.AF_UNIX) as stale:
                stale.bind(str(rig.home.engine_socket))
        else:
            rig.home.engine_socket.write_text("")
        async with serving(rig.home), client(rig.home) as http:
            assert (await http.get("/v1/engine")).status_code == 200


@pytest.mark.anyio
async def test_no_tcp_port_is_opened_unless_asked_for(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_server", lambda *args: pytest.fail("a TCP port was opened"))

    async with asyncio.timeout(20):
        async with serving(rig.home):
            pass


@pytest.mark.anyio
async def test_tcp_needs_the_token_and_the_unix_socket_does_not(rig: Rig) -> None:
    async with asyncio.timeout(20):
        tcp = TcpOptions("127.0.0.1", 0, token="secret", allowed_hosts=("VMS.example.org",))
        async with serving(rig.home, tcp=tcp) as (_, (url, token)), client(rig.home) as local:
            assert token == "secret" and not rig.home.token.exists()
            async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
                right = {"authorization": "Bearer secret"}
                assert (await http.get("/v1/engine")).status_code == 401
                assert (await http.get("/v1/engine", headers={"authorization": "Bearer wrong"})).status_code == 401
                assert (await http.get("/v1/engine", headers=right)).status_code == 200
                for host, status in (("vms.example.org", 200), ("localhost:1", 200), ("[::1]:1", 200), ("evil", 403)):
                    assert (await http.get("/v1/engine", headers=right | {"host": host})).status_code == status
            assert (await local.get("/v1/engine")).status_code == 200


@pytest.mark.anyio
async def test_a_token_is_made_once_and_only_its_user_may_read_it(rig: Rig) -> None:
    async with asyncio.timeout(20):
        tokens = []
        for _ in range(2):
            async with serving(rig.home, tcp=TcpOptions("127.0.0.1", 0)) as (_, (_, token)):
                tokens.append(token)
                assert mode(rig.home.token) == 0o600
                assert rig.home.token.read_text().strip() == token
        assert tokens[0] == tokens[1] and len(tokens[0]) >= 32


@pytest.mark.anyio
@pytest.mark.parametrize("content", ["", "\n"])
async def test_an_empty_token_file_opens_no_door(rig: Rig, content: str) -> None:
    async with asyncio.timeout(20):
        rig.home.root.mkdir()
        rig.home.token.write_text(content)
        async with serving(rig.home, tcp=TcpOptions("127.0.0.1", 0)) as (_, (url, token)):
            assert token and len(token) >= 32
            async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
                assert (await http.get("/v1/engine")).status_code == 401


@pytest.mark.anyio
@pytest.mark.parametrize("host", ["127.0.0.1", "host.invalid"])
async def test_an_address_that_cannot_be_bound_is_said_before_the_engine_starts(rig: Rig, host: str) -> None:
    async with asyncio.timeout(20):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            tcp = TcpOptions(host, taken.getsockname()[1])
            with pytest.raises(InvalidArgument, match=f"cannot listen on {host}") as caught:
                await serve(rig.home, tcp=tcp, on_ready=lambda url, token: pytest.fail("it is not ready"))
        assert "--listen" in caught.value.hint and not rig.home.root.exists()


@pytest.mark.anyio
async def test_a_request_that_is_under_way_is_answered_before_the_end(rig: Rig) -> None:
    async with asyncio.timeout(20):
        async with serving(rig.home) as (task, _), client(rig.home) as http:
            body = {"config": rig.config.model_dump(exclude_unset=True) | {"name": "web"}, "start": True}
            making = asyncio.create_task(http.post("/v1/vms", json=body))
            while not rig.vmms():
                await asyncio.sleep(0.005)
            os.kill(os.getpid(), signal.SIGTERM)
            assert (await making).status_code == 201
            await task


@pytest.mark.anyio
async def test_it_says_when_vms_need_an_engine_before_a_vmm_is_started(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[bool] = []
    at_launch: list[bool] = []
    launch = rig.driver.launch

    async def look(*args: Any) -> FakeMachine:
        at_launch.append(said[-1])
        return await launch(*args)

    monkeypatch.setattr(rig.driver, "launch", look)

    async def until_said(needed: bool) -> None:
        while said[-1:] != [needed]:
            await asyncio.sleep(0.005)

    async with asyncio.timeout(20):
        async with serving(rig.home, on_needed=said.append), client(rig.home) as http:
            await until_said(False)
            body = {"config": rig.config.model_dump(exclude_unset=True) | {"name": "web"}, "start": True}
            assert (await http.post("/v1/vms", json=body)).status_code == 201
            assert (at_launch, said[-1]) == ([True], True)
            assert (await http.delete("/v1/vms/web")).status_code == 204
            await until_said(False)


@pytest.mark.anyio
@pytest.mark.parametrize(("host", "name"), [("[::1]", "[::1]"), ("::1", "[::1]"), ("localhost", "localhost")])
async def test_addresses_of_both_kinds(rig: Rig, host: str, name: str) -> None:
    async with serving(rig.home, tcp=TcpOptions(host, 0, token="t")) as (_, (url, _token)):
        assert url and url.startswith(f"http://{name}:")
        async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
            assert (await http.get("/v1/engine", headers={"authorization": "Bearer t"})).status_code == 200


@pytest.mark.anyio
@pytest.mark.parametrize("ends", ["closed", "killed"])
async def test_a_running_engine_listens_as_long_as_a_client_asks_for_it(rig: Rig, ends: str) -> None:
    async with serving(rig.home), EngineClient(home=rig.home) as engine:
        listener = engine.listen("[::1]", 0, token="t0ken", allowed_hosts=["a.example"])
        url, token = await anext(listener)
        assert (url.startswith("http://[::1]:"), token) == (True, "t0ken")
        right = {"authorization": f"Bearer {token}", "host": "a.example"}
        async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
            assert (await http.get("/v1/engine", headers=right)).status_code == 200
            assert (await http.get("/v1/engine")).status_code == 401
            again = await http.post("/v1/listeners", headers=right, json={"host": "127.0.0.1", "port": 0})
            assert again.json()["error"]["code"] == "unsupported", "a client of the port opens no other"
        if ends == "closed":
            await listener.aclose()
        else:
            await engine.close()
        with pytest.raises(httpx.ConnectError):
            while True:
                async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
                    with contextlib.suppress(httpx.ReadError, httpx.RemoteProtocolError):
                        await http.get("/v1/engine")
                await asyncio.sleep(0.01)
        with contextlib.suppress(EngineUnavailable, RuntimeError):
            await listener.aclose()


@pytest.mark.anyio
async def test_a_listener_that_cannot_be_opened(rig: Rig) -> None:
    async with serving(rig.home), EngineClient(home=rig.home) as engine:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            for host, port in (("127.0.0.1", taken.getsockname()[1]), ("a b", 0), ("host.invalid", 0)):
                with pytest.raises(InvalidArgument):
                    await anext(engine.listen(host, port))


@pytest.mark.anyio
async def test_a_listener_without_a_token_of_its_own_has_the_kept_one(rig: Rig) -> None:
    async with serving(rig.home), EngineClient(home=rig.home) as engine:
        async with contextlib.aclosing(engine.listen("127.0.0.1", 0)) as listener:
            _, token = await anext(listener)
        assert token == rig.home.token.read_text().strip() and mode(rig.home.token) == 0o600


# --- the detached process ------------------------------------------------------------------------------------------


class NoWatchdog:
    """In the place of `squib.api.watchdog.Watchdog`, which would start engines on behalf of this process."""

    ends = 0

    def __init__(self, *args: object) -> None:
        pass

    def start(self) -> None:
        pass

    def set_needed(self, needed: bool) -> None:
        pass

    async def end(self) -> None:
        NoWatchdog.ends += 1


def run_daemon(home: Home, monkeypatch: pytest.MonkeyPatch) -> object:
    """What it reports. It runs in this process, as it would in its own."""
    read_fd, write_fd = os.pipe()
    monkeypatch.setattr(sys, "argv", ["squib.api.daemon", str(home.root), "--ready-fd", str(write_fd)])
    monkeypatch.setattr(daemon, "log_to_file", lambda home: None)
    monkeypatch.setattr(daemon, "Watchdog", NoWatchdog)
    try:
        daemon.main()
    finally:
        with os.fdopen(read_fd) as pipe:
            told = pipe.read()
    return json.loads(told)


def test_the_daemon_reports_that_it_answers_and_ends_when_idle(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUIB_IDLE_EXIT_S", "0")
    assert run_daemon(rig.home, monkeypatch) == {}
    assert not rig.home.engine_socket.exists()


def test_the_daemon_reports_why_it_did_not_start(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(home: Home) -> Drivers:
        raise BootFailed("no VMM", hint="h", detail="d")

    monkeypatch.setattr(server, "find_drivers", fail)
    told: list[object] = []
    monkeypatch.setattr(json, "dump", lambda value, file: told.append(value) or file.write("0"))
    with pytest.raises(SystemExit) as ended:
        run_daemon(rig.home, monkeypatch)
    assert ended.value.code == 1
    assert told == [{"error": {"code": "boot_failed", "message": "no VMM", "hint": "h", "detail": "d"}}]


def test_the_daemon_lets_no_vmm_inherit_its_pipe(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    inheritable: list[bool] = []

    async def look(home: Home) -> Drivers:
        inheritable.append(os.get_inheritable(int(sys.argv[3])))
        return Drivers.of(rig.driver)

    monkeypatch.setattr(server, "find_drivers", look)
    monkeypatch.setenv("SQUIB_IDLE_EXIT_S", "0")
    monkeypatch.setattr(os, "pipe", partial(_inheritable_pipe, os.pipe))
    run_daemon(rig.home, monkeypatch)
    assert inheritable == [False]


def _inheritable_pipe(pipe: Callable[[], tuple[int, int]]) -> tuple[int, int]:
    read_fd, write_fd = pipe()
    os.set_inheritable(write_fd, True)
    return read_fd, write_fd


@pytest.mark.anyio
async def test_when_its_state_directory_is_removed_it_ends_with_its_vms(rig: Rig) -> None:
    async with asyncio.timeout(20):
        async with serving(rig.home) as (task, _):
            async with client(rig.home) as http:
                body = {"config": rig.config.model_dump(exclude_unset=True), "start": True}
                pid = (await http.post("/v1/vms", json=body)).json()["pid"]
            shutil.rmtree(rig.home.root)
            await task
            assert not Path(f"/proc/{pid}").exists()
