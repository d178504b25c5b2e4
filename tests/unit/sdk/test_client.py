"""`EngineClient`: which engine it finds, what it retries, and its errors for servers that are not squib engines."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import httpx
import pytest

from squib.errors import EngineUnavailable, InvalidArgument, NotFound, SquibError
from squib.host import sockets
from squib.models import EngineInfo, VMConfig
from squib.paths import Home
from squib.sdk import httpclient
from squib.sdk.client import EngineClient
from tests.fakes.assets import KERNEL_VERSION
from tests.fakes.served import Served
from tests.fakes.values import NOW

INFO = EngineInfo(
    version="1", pid=7, home="/h", driver="fake", accelerator="none", started_at=NOW, vm_count=0, running_count=0
).model_dump_json()
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def answering(status: int, body: str | bytes, **headers: str) -> EngineClient:
    """A client whose requests get this answer."""
    engine = EngineClient(url="http://somewhere:1")
    transport = httpx.MockTransport(lambda request: httpx.Response(status, content=body, headers=headers))
    engine._http = httpx.AsyncClient(transport=transport, base_url="http://somewhere:1")
    return engine


class Lossy:
    """An engine of a state directory that ends in the middle of its first ``losses`` requests."""

    def __init__(self, home: Home, losses: int) -> None:
        self.home, self.losses = home, losses
        self.requests: list[str] = []
        self.started = 0

    async def ensure_engine(self, home: Home) -> None:
        assert home == self.home
        self.started += 1

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.requests.append(" ".join(head.split()[:2]))
        if len(self.requests) > self.losses:
            writer.write(f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len(INFO)}\r\n\r\n{INFO}".encode())
        writer.close()


async def with_lossy(
    home: Home, monkeypatch: pytest.MonkeyPatch, losses: int, test: Callable[[EngineClient], Awaitable[None]]
) -> Lossy:
    lossy = Lossy(home, losses)
    monkeypatch.setattr(httpclient, "ensure_engine", lossy.ensure_engine)
    home.root.mkdir(exist_ok=True)

    async with asyncio.timeout(20):
        server = await asyncio.start_unix_server(lossy.serve, sock=sockets.listen(home.engine_socket))
        async with EngineClient(home=home) as engine:
            await test(engine)
        server.close()
        await server.wait_closed()
    return lossy


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


# --- which engine --------------------------------------------------------------------------------------------------


def test_the_engine_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUIB_HOME", "/srv/squib")
    assert EngineClient().home == Home(Path("/srv/squib"))
    monkeypatch.setenv("SQUIB_URL", "http://vms.example.org:8765")
    assert EngineClient().home is None
    assert "vms.example.org" in repr(EngineClient())
    assert EngineClient(home=Home(Path("/h"))).home == Home(Path("/h")), "what is asked for comes first"
    assert "other" in repr(EngineClient(url="http://other"))
    monkeypatch.setenv("SQUIB_URL", "")
    assert EngineClient().home == Home(Path("/srv/squib"))


def test_clients_of_the_same_engine_with_the_same_rights_have_the_same_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUIB_HOME", "/srv/squib")
    keys = [
        EngineClient().key,
        EngineClient(home=Home(Path("/other"))).key,
        EngineClient(url="http://a").key,
        EngineClient(url="http://b").key,
        EngineClient(url="http://a", token="one").key,
        EngineClient(url="http://a", token="two").key,
    ]
    assert len(set(keys)) == len(keys)
    assert EngineClient(url="http://a", token="one").key == keys[4] and EngineClient().key == keys[0]


def test_the_token_is_in_no_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUIB_TOKEN", "hunter2")
    assert "hunter2" not in repr(EngineClient(url="http://a")) + repr(EngineClient(url="http://a", token="hunter2"))


@pytest.mark.anyio
async def test_a_remote_engine_gets_the_token_and_nothing_of_the_environments_proxies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    seen: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(INFO)}\r\n\r\n{INFO}".encode())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    for url in (f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port}/", f"http://127.0.0.1:{port}/behind/proxy"):
        async with EngineClient(url=url, token=" hunter2\n") as engine:
            assert (await engine.info()).driver == "fake"
    server.close()
    await server.wait_closed()
    assert [request.split()[1] for request in seen] == ["/v1/engine", "/v1/engine", "/behind/proxy/v1/engine"]
    assert all("authorization: Bearer hunter2\r\n" in request for request in seen)


@pytest.mark.anyio
async def test_a_long_path_of_a_state_directory_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()

    async def test(engine: EngineClient) -> None:
        assert (await engine.info()).driver == "fake"

    lossy = await with_lossy(Home(folder / "home"), monkeypatch, 0, test)
    assert lossy.requests == ["GET /v1/engine"]


@pytest.mark.anyio
async def test_a_client_can_be_used_again_after_it_was_closed(served: Served) -> None:
    async with EngineClient() as engine:
        await engine.close()
        await engine.close()
        assert (await engine.info()).driver == "fake"


# --- requests that are sent again -----------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_a_request_that_can_be_repeated_is_sent_again_to_a_new_engine(
    home: Home, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    async def test(engine: EngineClient) -> None:
        assert await engine.request(method, "/engine") == json.loads(INFO)

    lossy = await with_lossy(home, monkeypatch, 1, test)
    assert (lossy.requests, lossy.started) == ([f"{method} /v1/engine"] * 2, 1)


@pytest.mark.anyio
async def test_a_request_is_not_sent_again_for_ever(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("squib.sdk.httpclient.PAUSES_S", (0.0, 0.0))

    async def test(engine: EngineClient) -> None:
        with pytest.raises(EngineUnavailable, match="broke"):
            await engine.info()

    lossy = await with_lossy(home, monkeypatch, 9, test)
    assert len(lossy.requests) == 3


@pytest.mark.anyio
async def test_a_request_that_changes_something_is_not_sent_again(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(engine: EngineClient) -> None:
        with pytest.raises(EngineUnavailable, match="broke") as caught:
            await engine.create_vm(VMConfig())
        assert "squib logs --engine" in caught.value.hint

    lossy = await with_lossy(home, monkeypatch, 1, test)
    assert (lossy.requests, lossy.started) == (["POST /v1/vms"], 0)


@pytest.mark.anyio
async def test_a_request_that_found_no_engine_is_sent_when_one_runs(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    lossy = Lossy(home, 0)
    home.root.mkdir()

    servers = []

    async def ensure_engine(home: Home) -> None:
        servers.append(await asyncio.start_unix_server(lossy.serve, sock=sockets.listen(home.engine_socket)))

    monkeypatch.setattr(httpclient, "ensure_engine", ensure_engine)
    async with EngineClient(home=home) as engine:
        assert await engine.request("POST", "/engine", {}) == json.loads(INFO)
    [server] = servers
    server.close()
    await server.wait_closed()
    assert lossy.requests == ["POST /v1/engine"]


@pytest.mark.anyio
async def test_an_engine_elsewhere_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ensure_engine(home: Home) -> None:
        pytest.fail("an engine was started")

    monkeypatch.setattr(httpclient, "ensure_engine", ensure_engine)

    async with EngineClient(url="http://127.0.0.1:1") as engine:
        for request in (engine.info(), engine.create_vm(VMConfig())):
            with pytest.raises(EngineUnavailable, match=r"no engine answers at http://127\.0\.0\.1:1") as caught:
                await request
            assert "SQUIB_URL" in caught.value.hint


# --- what is no engine -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, "<html>not found</html>"),
        (502, ""),
        (500, "{}"),
        (400, "[]"),
        (403, '{"error": "no"}'),
        (500, '{"error": null}'),
        (401, "\xff"),
        (200, "<html>hello</html>"),
        (200, "{"),
        (200, ""),
        (200, "[]"),
        (200, "null"),
        (200, '{"status": "up"}'),
        (302, ""),
    ],
)
@pytest.mark.anyio
async def test_what_answers_and_is_no_engine_is_told(status: int, body: str) -> None:
    async with answering(status, body) as engine:
        pause, resume = partial(engine.pause_vm, "web"), partial(engine.resume_vm, "web")
        for ask in (engine.info, engine.vms, engine.images, engine.kernels, engine.doctor, pause, resume):
            with pytest.raises(EngineUnavailable, match=r"not a squib engine|another version") as caught:
                await ask()
            assert "SQUIB_URL" in caught.value.hint


@pytest.mark.anyio
async def test_an_answer_with_a_field_of_a_newer_engine_is_read() -> None:
    async with answering(200, INFO.replace('"pid"', '"of_the_future":1,"pid"')) as engine:
        assert (await engine.info()).pid > 0


@pytest.mark.anyio
async def test_an_answer_without_a_known_field_is_an_error() -> None:
    async with answering(200, INFO.replace('"pid"', '"process"')) as engine:
        with pytest.raises(EngineUnavailable, match="another version") as caught:
            await engine.info()
        assert "squib version" in caught.value.hint


@pytest.mark.parametrize(
    "url", ["http://[::1", "http://host:port", "vms.example.org:8765", "ftp://host", "//host", "http://", "nonsense"]
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid engine URL") as caught:
        EngineClient(url=url)
    assert "SQUIB_URL" in caught.value.hint


@pytest.mark.parametrize("token", ["hunter2\nx", "hunter2\0", "hunter2 é", "hunter2 \udcff"])
def test_a_token_that_cannot_be_one_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(InvalidArgument, match="token") as caught:
        EngineClient(url="http://a", token=token)
    assert "hunter2" not in str(caught.value)


@pytest.mark.anyio
async def test_the_engines_errors_are_raised_again(served: Served) -> None:
    async with EngineClient() as engine:
        with pytest.raises(NotFound, match="'nosuch'") as caught:
            await engine.vm("nosuch")
        assert caught.value.hint == "squib ls shows all VMs"


# --- builds ----------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_build_tells_its_progress_and_returns_the_image(served: Served) -> None:
    steps: list[str] = []
    async with EngineClient() as engine:
        image = await engine.build_image("base", on_progress=lambda progress: steps.append(progress.step))
        assert (image.name, steps) == ("base", ["squashfs", "digest"])
        assert (await engine.images(), (await engine.build_kernel()).version) == ([image], KERNEL_VERSION)


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ('{"progress":{"step":"a"}}\n{"error":{"code":"not_found","message":"gone"}}\n', NotFound),
        ('{"progress":{"step":"a"}}\n', EngineUnavailable),
        ("", EngineUnavailable),
        ("<html>\n", EngineUnavailable),
        ("[]\n", EngineUnavailable),
        ('{"kernel": null}\n', EngineUnavailable),
    ],
)
@pytest.mark.anyio
async def test_a_build_that_does_not_end_well_is_told(lines: str, error: type[SquibError]) -> None:
    async with answering(200, lines) as engine:
        with pytest.raises(error):
            await engine.build_image("base")


IMAGE = {"name": "base", "digest": "sha256:1", "size_bytes": 1, "built_at": "2026-01-01T00:00:00Z", "layers": 3}


@pytest.mark.anyio
async def test_events_and_fields_that_a_newer_engine_adds_are_ignored() -> None:
    lines = [{"heartbeat": 1}, {"progress": {"step": "boot", "percent": 7}}, {"image": IMAGE, "mirror": "x"}]
    body = "".join(json.dumps(line) + "\n" for line in lines)
    steps: list[str] = []

    async with answering(200, body) as engine:
        image = await engine.build_image("base", on_progress=lambda step: steps.append(step.step))
    assert (image.name, steps) == ("base", ["boot"])


@pytest.mark.anyio
async def test_an_error_with_fields_that_a_newer_engine_adds_is_read() -> None:
    body = json.dumps({"error": {"code": "not_found", "message": "m", "hint": "h", "docs": "url"}, "trace": "t"})

    async with answering(404, body) as engine:
        with pytest.raises(NotFound, match="m"):
            await engine.vm("web")
