"""The API in this process, on a real engine with a fake driver."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator

import httpx
import pytest
from starlette.types import ASGIApp

from squib.api.app import create_app
from squib.core.engine import Engine
from squib.host import cgroup
from tests.fakes.asgi import Handshake, Request
from tests.fakes.engine import Rig

OverHttp = Callable[[], contextlib.AbstractAsyncContextManager[tuple[Engine, httpx.AsyncClient]]]
Answer = Callable[[Request], Request]


@pytest.fixture
def over_http(rig: Rig) -> OverHttp:
    """An engine and a client of its API: ``async with over_http() as (engine, http):``."""

    @contextlib.asynccontextmanager
    async def connected() -> AsyncIterator[tuple[Engine, httpx.AsyncClient]]:
        async with asyncio.timeout(20), rig.http() as (engine, http):
            yield engine, http

    return connected


@pytest.fixture(scope="module")
def empty_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[asyncio.Runner, Engine]]:
    """An engine without VMs, and the loop it lives on: one for all tests of a module that change nothing."""
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner() as runner:
        patch.setattr(cgroup, "find_layout", cgroup.Layout)
        stack = contextlib.AsyncExitStack()
        engine = runner.run(stack.enter_async_context(Rig(tmp_path_factory.mktemp("empty")).engine()))
        try:
            yield runner, engine
            assert engine.store.list_vms() == []
        finally:
            runner.run(stack.aclose())


@pytest.fixture(scope="module")
def apps(empty_engine: tuple[asyncio.Runner, Engine]) -> dict[str, ASGIApp]:
    """The apps that were made of it, by their options: each takes 15 ms to make."""
    return {}


@pytest.fixture
def app_of(
    empty_engine: tuple[asyncio.Runner, Engine], apps: dict[str, ASGIApp]
) -> Callable[[dict[str, object] | None], ASGIApp]:
    """The app with these options."""

    def app(options: dict[str, object] | None) -> ASGIApp:
        key = repr(options)
        if key not in apps:
            apps[key] = create_app(empty_engine[1], **(options or {}))  # type: ignore[arg-type]
        return apps[key]

    return app


@pytest.fixture
def answer(
    empty_engine: tuple[asyncio.Runner, Engine], app_of: Callable[[dict[str, object] | None], ASGIApp]
) -> Callable[..., Request]:
    """Sends a request by hand to an engine without VMs: ``answer("GET", "/v1/vms", host="x", app={"token": "t"})``."""

    def send(method: str, path: str, *, app: dict[str, object] | None = None, **options: object) -> Request:
        request = Request(method, path, **options)  # type: ignore[arg-type]
        return empty_engine[0].run(asyncio.wait_for(request.send_to(app_of(app)), 20))

    return send


@pytest.fixture
def shake_hands(
    empty_engine: tuple[asyncio.Runner, Engine], app_of: Callable[[dict[str, object] | None], ASGIApp]
) -> Callable[..., Handshake]:
    """Opens a WebSocket to it: ``shake_hands("/v1/vms/web/pty", messages=["{}"])``."""

    def shake(path: str, *, app: dict[str, object] | None = None, **options: object) -> Handshake:
        handshake = Handshake(path, **options)  # type: ignore[arg-type]
        return empty_engine[0].run(asyncio.wait_for(handshake.send_to(app_of(app)), 20))

    return shake
