"""``POST /v1/vms`` with ``Accept: application/x-ndjson`` streams the progress of a create."""

import asyncio
import json
from typing import Any

import pytest

from squib.api.app import create_app
from tests.fakes.asgi import JSON, Request
from tests.fakes.engine import Rig

pytestmark = pytest.mark.anyio

STREAM = (*JSON, ("accept", "application/x-ndjson"))


def create(rig: Rig, *, start: bool = True, headers: tuple[tuple[str, str], ...] = STREAM) -> Request:
    body = {"config": rig.config.model_dump(exclude_unset=True) | {"name": "web"}, "start": start}
    return Request("POST", "/v1/vms", json.dumps(body).encode(), headers)


def lines_of(request: Request) -> list[Any]:
    assert (request.status, dict(request.answered)["content-type"]) == (200, "application/x-ndjson")
    assert request.complete and request.received.endswith(b"\n")
    return [json.loads(line) for line in request.received.splitlines()]


async def test_a_create_streams_its_steps_and_the_vm(rig: Rig) -> None:
    async with rig.engine() as engine:
        app = create_app(engine)
        *steps, last = lines_of(await create(rig).send_to(app))
        assert steps[-1] == {"progress": {"step": "boot", "done": 0, "unit": ""}}
        assert all(step.keys() == {"progress"} for step in steps)
        assert last.keys() == {"vm"}
        described = (await Request("GET", "/v1/vms/web").send_to(app)).json
        assert (described["state"], described["name"]) == ("running", "web")
        assert last["vm"] == described


async def test_a_create_without_start_does_not_boot(rig: Rig) -> None:
    async with rig.engine() as engine:
        *steps, last = lines_of(await create(rig, start=False).send_to(create_app(engine)))
        assert last["vm"]["state"] == "created"
        assert "boot" not in [step["progress"]["step"] for step in steps]


@pytest.mark.parametrize(
    ("accept", "streams"),
    [
        ("application/x-ndjson", True),
        ("Application/X-NDJSON;q=0.9, application/json", True),
        ("*/*", False),
        ("application/json", False),
        ("application/x-ndjson-seq", False),
        ("", False),
    ],
)
async def test_only_a_client_that_asks_for_lines_gets_them(accept: str, streams: bool, rig: Rig) -> None:
    async with rig.engine() as engine:
        request = await create(rig, start=False, headers=(*JSON, ("accept", accept))).send_to(create_app(engine))
        assert request.status == (200 if streams else 201)
        assert ("vm_id" in json.loads(request.received.splitlines()[-1])) is not streams


async def test_a_create_that_fails_ends_with_the_error_and_leaves_nothing(rig: Rig) -> None:
    async with rig.engine() as engine:
        rig.driver.behaviour = "--die"
        *_, boot, last = lines_of(await create(rig).send_to(create_app(engine)))
        assert boot["progress"]["step"] == "boot"
        assert last["error"]["code"] == "boot_failed" and "last line" in last["error"]["detail"]
        assert engine.store.list_vms() == [] == engine.store.leases()


async def test_a_create_that_fails_at_once_has_only_the_error(rig: Rig) -> None:
    async with rig.engine() as engine:
        app = create_app(engine)
        await create(rig, start=False).send_to(app)
        [last] = lines_of(await create(rig, start=False).send_to(app))
        assert last["error"]["code"] == "name_taken"


async def test_an_invalid_request_is_refused_with_a_status(rig: Rig) -> None:
    async with rig.engine() as engine:
        request = await Request("POST", "/v1/vms", b'{"nonsense": 1}', STREAM).send_to(create_app(engine))
        assert (request.status, request.error["code"]) == (400, "invalid_argument")


async def test_a_client_that_disconnects_early_leaves_no_vm(rig: Rig) -> None:
    async with asyncio.timeout(20), rig.engine() as engine:
        rig.driver.behaviour = "--hang"
        request = create(rig)
        task = asyncio.create_task(request.send_to(create_app(engine)))
        await request.arrived.wait()
        while not rig.vmms():
            await asyncio.sleep(0.005)
        request.leave.set()
        await task
        assert b'"vm"' not in request.received and not request.complete
        assert engine.store.list_vms() == [] == engine.store.leases()
        assert list(rig.home.vms.iterdir()) == [] == rig.vmms()
        assert engine.idle_s > 0
