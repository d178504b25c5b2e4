"""IDs and names that are none are refused wherever they enter, before anything is done with them."""

import asyncio
import json
from urllib.parse import quote

import pytest

from squib.api.app import create_app
from tests.fakes.asgi import Request
from tests.fakes.engine import Rig

HOSTILE = [
    "..",
    ".",
    ".hidden",
    "-rf",
    "--",
    "_x",
    "$(x)",
    "`x`",
    "a b",
    "a;b",
    "a" * 64,
    "a" * 300,
    "a\0",
    "a\n",
    "\n",
    "\r\n",
    "é",
    "ａ",
    "\u202ea",
    "a\\b",
    "%2e%2e",
    "a?b",
    "a#b",
    "*",
    "'",
    '"',
    "~",
    "a:b",
    "a@b",
    "a=b",
]
WITH_SLASH = ["a/b", "/", "../..", "/etc/passwd", "a/"]
ROUTES = [
    ("GET", "/v1/vms/{}", b""),
    ("DELETE", "/v1/vms/{}", b""),
    ("POST", "/v1/vms/{}/start", b"{}"),
    ("POST", "/v1/vms/{}/stop", b"{}"),
    ("POST", "/v1/vms/{}/hold", b""),
    ("POST", "/v1/vms/{}/pause", b""),
    ("POST", "/v1/vms/{}/resume", b""),
    ("POST", "/v1/vms/{}/exec", b'{"argv": ["true"]}'),
    ("POST", "/v1/vms/{}/processes/p1/stdin", b"data"),
    ("POST", "/v1/vms/{}/processes/p1/signal", b'{"signal": 9}'),
    ("GET", "/v1/vms/{}/logs", b""),
    ("GET", "/v1/vms/{}/logs?follow=true", b""),
    ("DELETE", "/v1/images/{}", b""),
]


def answers(rig: Rig, requests: list[Request]) -> list[Request]:
    async def main() -> None:
        async with asyncio.timeout(20), rig.engine() as engine:
            app = create_app(engine)
            for request in requests:
                await request.send_to(app)
            assert engine.store.list_vms() == []
            assert list(rig.home.vms.iterdir()) == []

    asyncio.run(main())
    return requests


@pytest.mark.parametrize(("method", "route", "body"), ROUTES, ids=lambda value: value if isinstance(value, str) else "")
def test_hostile_names_are_refused_on_every_route(rig: Rig, method: str, route: str, body: bytes) -> None:
    requests = [Request(method, route.format(quote(name, safe="")), body) for name in HOSTILE]
    for name, request in zip(HOSTILE, answers(rig, requests), strict=True):
        assert (request.status, request.error["code"]) == (400, "invalid_argument"), name
        assert request.error["message"].startswith("ref: ") and "is not a name" in request.error["message"]


@pytest.mark.parametrize(("method", "route", "body"), ROUTES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_name_does_not_leave_its_part_of_the_path(rig: Rig, method: str, route: str, body: bytes) -> None:
    plain = [quote(name, safe="") for name in WITH_SLASH]
    requests = [Request(method, route.format(text), body) for text in [*plain, "..%2F..", "a%2fb", "%2e%2e%2fengine"]]
    for request in answers(rig, requests):
        assert request.status in (400, 404)
        assert request.error["code"] in ("invalid_argument", "not_found")
        assert "no such route" in request.error["message"] or "is not a name" in request.error["message"]


def test_every_route_with_a_name_is_tried_here(rig: Rig) -> None:
    [request] = answers(rig, [Request("GET", "/v1/openapi.json")])
    documented = {
        (method.upper(), path.replace("{ref}", "{}").replace("{process_id}", "p1"))
        for path, operations in request.json["paths"].items()
        for method in operations
        if "{" in path
    }
    assert documented == {(method, route.partition("?")[0]) for method, route, _ in ROUTES}


@pytest.mark.parametrize("field", ["vm_id", "name", "project", "runtime"])
def test_hostile_names_are_refused_in_a_new_vm(rig: Rig, field: str) -> None:
    config = rig.config.model_dump(exclude_unset=True)
    names = [*HOSTILE, *WITH_SLASH, ""]
    requests = [Request("POST", "/v1/vms", json.dumps({"config": config | {field: name}}).encode()) for name in names]
    for name, request in zip(names, answers(rig, requests), strict=True):
        assert (request.status, request.error["code"]) == (400, "invalid_argument"), name
        assert request.error["message"].startswith(f"config.{field}: ")


def test_hostile_names_are_refused_as_an_image_to_build(rig: Rig) -> None:
    names = [*HOSTILE, *WITH_SLASH, ""]
    requests = [Request("POST", "/v1/images", json.dumps({"name": name}).encode()) for name in names]
    for name, request in zip(names, answers(rig, requests), strict=True):
        assert (request.status, request.error["code"]) == (400, "invalid_argument"), name


def test_hostile_names_are_refused_as_a_project_to_list(rig: Rig) -> None:
    names = [*HOSTILE, *WITH_SLASH, ""]
    for request in answers(rig, [Request("GET", f"/v1/vms?project={quote(name, safe='')}") for name in names]):
        assert (request.status, request.error["code"]) == (400, "invalid_argument")
        assert request.error["message"].startswith("project: ")


@pytest.mark.parametrize(
    "process_id", ["1", "p", "px", "p-1", "p1%0A", "p1%00", "p" + "1" * 19, "P1", "p1%3Fclose=1", "p%D9%A3", ".."]
)
@pytest.mark.parametrize("route", ["signal", "stdin"])
def test_what_is_no_process_id_is_refused(rig: Rig, process_id: str, route: str) -> None:
    [request] = answers(rig, [Request("POST", f"/v1/vms/web/processes/{process_id}/{route}", b'{"signal": 9}')])
    assert (request.status, request.error["code"]) == (400, "invalid_argument")
    assert request.error["message"].startswith("process_id: ")


def test_an_id_that_nobody_has_is_not_found(rig: Rig) -> None:
    for request in answers(rig, [Request(method, route.format("nosuch"), body) for method, route, body in ROUTES]):
        assert (request.status, request.error["code"]) == (404, "not_found")
        assert "nosuch" in request.error["message"]
