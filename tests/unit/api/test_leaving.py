"""Clients that leave while something is made for them."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from starlette.types import ASGIApp

from squib.api.app import create_app
from squib.core.engine import Engine
from squib.errors import ToolFailed
from squib.images.store import Image
from squib.kernels.catalog import Kernel
from squib.models import Progress
from squib.store.database import now
from tests.fakes.asgi import Request
from tests.fakes.engine import Rig

pytestmark = pytest.mark.anyio

OnProgress = Callable[[Progress], None]


@contextlib.asynccontextmanager
async def app_of(rig: Rig) -> AsyncIterator[tuple[Engine, ASGIApp]]:
    async with asyncio.timeout(20), rig.engine() as engine:
        yield engine, create_app(engine)


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


async def test_a_create_whose_client_leaves_is_undone(rig: Rig) -> None:
    async with app_of(rig) as (engine, app):
        rig.driver.behaviour = "--hang"
        body = {"config": rig.config.model_dump(exclude_unset=True) | {"name": "web"}, "start": True}
        request = Request("POST", "/v1/vms", json.dumps(body).encode())
        task = asyncio.create_task(request.send_to(app))
        await until(rig.vmms)
        request.leave.set()
        await task
        assert request.status == 499
        assert engine.store.list_vms() == [] == engine.store.leases()
        assert list(rig.home.vms.iterdir()) == [] == rig.vmms()
        assert engine.idle_s > 0


async def test_a_create_whose_client_waits_is_not(rig: Rig) -> None:
    async with app_of(rig) as (engine, app):
        body = {"config": rig.config.model_dump(exclude_unset=True)}
        request = await Request("POST", "/v1/vms", json.dumps(body).encode()).send_to(app)
        request.leave.set()
        assert (request.status, len(engine.store.list_vms())) == (201, 1)


def image(name: str) -> Image:
    return Image(name, "sha256:1", Path("/i"), 7, now())


def lines_of(request: Request) -> list[dict[str, object]]:
    assert request.status == 200
    return [json.loads(line) for line in request.received.splitlines()]


async def test_a_build_tells_its_steps_and_its_result(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async with app_of(rig) as (engine, app):
        asked: list[object] = []

        async def build(name: str, on_progress: OnProgress, *, rebuild: bool) -> Image:
            asked.append((name, rebuild))
            on_progress(Progress(step="bootstrap"))
            on_progress(Progress(step="squashfs", done=1, total=2, unit="MiB"))
            return image(name)

        monkeypatch.setattr(engine.images, "build", build)
        body = b'{"name": "base", "rebuild": true}'
        request = await Request("POST", "/v1/images", body).send_to(app)
        *steps, last = lines_of(request)
        assert steps == [
            {"progress": {"step": "bootstrap", "done": 0, "unit": ""}},
            {"progress": {"step": "squashfs", "done": 1, "total": 2, "unit": "MiB"}},
        ]
        assert last.keys() == {"image"} and asked == [("base", True)]


async def test_a_kernel_is_built_with_and_without_a_body(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async with app_of(rig) as (engine, app):
        asked: list[bool] = []

        async def ensure(on_progress: OnProgress, *, rebuild: bool) -> Kernel:
            asked.append(rebuild)
            return Kernel("6.1", "sha256:2", Path("/k"), None, None, (), 8, now())

        monkeypatch.setattr(engine.kernels, "ensure", ensure)
        for body in (b"", b"{}", b'{"rebuild": true}'):
            request = await Request("POST", "/v1/kernels", body).send_to(app)
            assert lines_of(request)[-1].keys() == {"kernel"}
        assert asked == [False, False, True]


async def test_a_build_that_fails_ends_with_the_error(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async with app_of(rig) as (engine, app):

        async def build(name: str, on_progress: OnProgress, *, rebuild: bool) -> Image:
            on_progress(Progress(step="bootstrap"))
            raise ToolFailed("it ended with 1", hint="h", detail="E: no network")

        monkeypatch.setattr(engine.images, "build", build)
        request = await Request("POST", "/v1/images", b'{"name": "base"}').send_to(app)
        first, last = lines_of(request)
        assert first.keys() == {"progress"}
        assert last == {
            "error": {"code": "tool_failed", "message": "it ended with 1", "hint": "h", "detail": "E: no network"}
        }


async def test_an_image_that_is_no_runtime_is_an_error(rig: Rig) -> None:
    async with app_of(rig) as (_, app):
        request = await Request("POST", "/v1/images", b'{"name": "windows"}').send_to(app)
        [last] = lines_of(request)
        assert last["error"]["code"] == "not_found"  # type: ignore[index]


async def test_a_build_whose_client_leaves_is_ended(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async with app_of(rig) as (engine, app):
        ended = asyncio.Event()

        async def build(name: str, on_progress: OnProgress, *, rebuild: bool) -> Image:
            on_progress(Progress(step="bootstrap"))
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
            raise AssertionError

        monkeypatch.setattr(engine.images, "build", build)
        request = Request("POST", "/v1/images", b'{"name": "base"}')
        task = asyncio.create_task(request.send_to(app))
        await request.arrived.wait()
        assert engine.idle_s == 0 and not ended.is_set()
        request.leave.set()
        await task
        await ended.wait()
        assert engine.idle_s > 0


async def test_a_vm_whose_holder_leaves_is_deleted(rig: Rig) -> None:
    async with app_of(rig) as (engine, app):
        body = {"config": rig.config.model_dump(exclude_unset=True) | {"name": "web"}, "start": True}
        assert (await Request("POST", "/v1/vms", json.dumps(body).encode()).send_to(app)).status == 201
        request = Request("POST", "/v1/vms/web/hold")
        task = asyncio.create_task(request.send_to(app))
        await until(lambda: engine._deleted)
        assert rig.vmms()
        request.leave.set()
        await task
        assert engine.store.list_vms() == [] == engine.store.leases()
        assert rig.vmms() == []


async def test_holding_a_vm_ends_when_somebody_deletes_it(rig: Rig) -> None:
    async with app_of(rig) as (engine, app):
        body = {"config": rig.config.model_dump(exclude_unset=True) | {"name": "web"}}
        assert (await Request("POST", "/v1/vms", json.dumps(body).encode()).send_to(app)).status == 201
        request = Request("POST", "/v1/vms/web/hold")
        task = asyncio.create_task(request.send_to(app))
        await until(lambda: engine._deleted)
        await Request("DELETE", "/v1/vms/web").send_to(app)
        await task
        assert request.status == 204
