"""The API in this process, on a real engine with a fake driver."""

import asyncio
from collections.abc import Awaitable, Callable

import httpx
import pytest

from squib.api.app import create_app
from squib.core.engine import Engine
from tests.fakes.asgi import Request
from tests.fakes.engine import Rig

Test = Callable[[Engine, httpx.AsyncClient], Awaitable[None]]
Answer = Callable[[Request], Request]


@pytest.fixture
def over_http(rig: Rig) -> Callable[[Test], None]:
    """Runs a test with an engine and a client of its API."""

    def run(test: Test) -> None:
        async def main() -> None:
            async with asyncio.timeout(20), rig.http() as (engine, http):
                await test(engine, http)

        asyncio.run(main())

    return run


@pytest.fixture
def answer(rig: Rig) -> Callable[..., Request]:
    """Sends one request by hand to an engine without VMs: ``answer("GET", "/v1/vms", host="x", token=None)``."""

    def send(method: str, path: str, *, app: dict[str, object] | None = None, **options: object) -> Request:
        async def main() -> Request:
            async with asyncio.timeout(20), rig.engine() as engine:
                request = Request(method, path, **options)  # type: ignore[arg-type]
                return await request.send_to(create_app(engine, **(app or {})))  # type: ignore[arg-type]

        return asyncio.run(main())

    return send
