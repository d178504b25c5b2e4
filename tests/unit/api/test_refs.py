"""IDs and names that are none are refused wherever they enter, before anything is done with them."""

import json
from collections.abc import Callable
from urllib.parse import quote

import pytest

from tests.fakes.asgi import Handshake, Request

Send = Callable[..., Request]

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
    ("GET", "/v1/vms/{}/details", b""),
    ("POST", "/v1/vms/{}/start", b"{}"),
    ("POST", "/v1/vms/{}/stop", b"{}"),
    ("POST", "/v1/vms/{}/hold", b""),
    ("DELETE", "/v1/vms/{}/hold", b""),
    ("POST", "/v1/vms/{}/pause", b""),
    ("POST", "/v1/vms/{}/resume", b""),
    ("POST", "/v1/vms/{}/exec", b'{"argv": ["true"]}'),
    ("GET", "/v1/vms/{}/processes", b""),
    ("GET", "/v1/vms/{}/processes/p1", b""),
    ("DELETE", "/v1/vms/{}/processes/p1", b""),
    ("GET", "/v1/vms/{}/processes/p1/output", b""),
    ("POST", "/v1/vms/{}/processes/p1/resize", b'{"rows": 24, "cols": 80}'),
    ("POST", "/v1/vms/{}/processes/p1/stdin", b"data"),
    ("POST", "/v1/vms/{}/processes/p1/signal", b'{"signal": 9}'),
    ("GET", "/v1/vms/{}/account", b""),
    ("GET", "/v1/vms/{}/env", b""),
    ("PATCH", "/v1/vms/{}/env", b"{}"),
    ("GET", "/v1/vms/{}/files?path=/a", b""),
    ("PUT", "/v1/vms/{}/files?path=/a", b"data"),
    ("DELETE", "/v1/vms/{}/files?path=/a", b""),
    ("GET", "/v1/vms/{}/files/stat?path=/a", b""),
    ("GET", "/v1/vms/{}/files/list?path=/a", b""),
    ("POST", "/v1/vms/{}/files/mkdir", b'{"path": "/a"}'),
    ("POST", "/v1/vms/{}/files/rename", b'{"from": "/a", "to": "/b"}'),
    ("GET", "/v1/vms/{}/files/watch?path=/a", b""),
    ("GET", "/v1/vms/{}/files/tar?path=/a", b""),
    ("PUT", "/v1/vms/{}/files/tar?path=/a", b"data"),
    ("GET", "/v1/vms/{}/logs", b""),
    ("GET", "/v1/vms/{}/logs?follow=true", b""),
    ("DELETE", "/v1/images/{}", b""),
    ("DELETE", "/v1/templates/{}", b""),
    ("POST", "/v1/vms/{}/suspend", b""),
    ("POST", "/v1/vms/{}/fork", b"{}"),
    ("POST", "/v1/vms/{}/rollback", b'{"snapshot": "s"}'),
    ("GET", "/v1/snapshots/{}", b""),
    ("DELETE", "/v1/snapshots/{}", b""),
    ("GET", "/v1/snapshots/{}/export", b""),
]


@pytest.mark.parametrize(("method", "route", "body"), ROUTES, ids=lambda value: value if isinstance(value, str) else "")
def test_hostile_names_are_refused_on_every_route(answer: Send, method: str, route: str, body: bytes) -> None:
    for name in HOSTILE:
        request = answer(method, route.format(quote(name, safe="")), body=body)
        assert (request.status, request.error["code"]) == (400, "invalid_argument"), name
        assert request.error["message"].startswith("ref: ") and "invalid name" in request.error["message"]


@pytest.mark.parametrize(("method", "route", "body"), ROUTES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_name_does_not_leave_its_part_of_the_path(answer: Send, method: str, route: str, body: bytes) -> None:
    plain = [quote(name, safe="") for name in WITH_SLASH]
    for text in [*plain, "..%2F..", "a%2fb", "%2e%2e%2fengine"]:
        request = answer(method, route.format(text), body=body)
        assert request.status in (400, 404)
        assert request.error["code"] in ("invalid_argument", "not_found")
        assert "no such route" in request.error["message"] or "invalid name" in request.error["message"]


def test_hostile_references_to_a_kernel_are_refused(answer: Send) -> None:
    for name in [*HOSTILE, "sha256:", "sha256:abc", f"sha256:{'A' * 64}", "6.1/x"]:
        if set(name) == {"a"}:
            continue  # the digits of a digest
        request = answer("DELETE", f"/v1/kernels/{quote(name, safe='')}")
        assert request.status in (400, 404), name
        assert "invalid kernel" in request.error["message"] or "no such route" in request.error["message"]


def test_hostile_names_are_refused_in_the_handshake_of_a_websocket(shake_hands: Callable[..., Handshake]) -> None:
    for name in HOSTILE:
        handshake = shake_hands(f"/v1/vms/{quote(name, safe='')}/pty")
        assert (handshake.status, handshake.error["code"]) == (400, "invalid_argument"), name
        assert handshake.error["message"].startswith("ref: ") and "invalid name" in handshake.error["message"]
    for name in WITH_SLASH:
        assert shake_hands(f"/v1/vms/{quote(name, safe='')}/pty").status in (400, 403)


def test_every_route_with_a_name_is_tried_here(answer: Send) -> None:
    request = answer("GET", "/v1/openapi.json")
    documented = {
        (method.upper(), path.replace("{ref}", "{}").replace("{process_id}", "p1"))
        for path, operations in request.json["paths"].items()
        for method in operations
        if "{" in path
    }
    documented.remove(("DELETE", "/v1/kernels/{kernel}"))
    assert documented == {(method, route.partition("?")[0]) for method, route, _ in ROUTES}


@pytest.mark.parametrize("field", ["vm_id", "name", "project", "runtime"])
def test_hostile_names_are_refused_in_a_new_vm(answer: Send, field: str) -> None:
    for name in [*HOSTILE, *WITH_SLASH, ""]:
        request = answer("POST", "/v1/vms", body=json.dumps({"config": {field: name}}).encode())
        assert (request.status, request.error["code"]) == (400, "invalid_argument"), name
        assert request.error["message"].startswith(f"config.{field}: ")


def test_hostile_names_are_refused_as_an_image_to_build(answer: Send) -> None:
    for name in [*HOSTILE, *WITH_SLASH, ""]:
        request = answer("POST", "/v1/images", body=json.dumps({"name": name}).encode())
        assert (request.status, request.error["code"]) == (400, "invalid_argument"), name


def test_hostile_names_are_refused_as_a_project_to_list(answer: Send) -> None:
    for name in [*HOSTILE, *WITH_SLASH, ""]:
        request = answer("GET", f"/v1/vms?project={quote(name, safe='')}")
        assert (request.status, request.error["code"]) == (400, "invalid_argument")
        assert request.error["message"].startswith("project: ")


@pytest.mark.parametrize(
    "process_id", ["1", "p", "px", "p-1", "p1%0A", "p1%00", "p" + "1" * 19, "P1", "p1%3Fclose=1", "p%D9%A3", ".."]
)
@pytest.mark.parametrize(
    ("method", "route"),
    [("POST", "/signal"), ("POST", "/stdin"), ("POST", "/resize"), ("GET", "/output"), ("GET", ""), ("DELETE", "")],
)
def test_what_is_no_process_id_is_refused(answer: Send, process_id: str, method: str, route: str) -> None:
    request = answer(method, f"/v1/vms/web/processes/{process_id}{route}", body=b"{}")
    assert (request.status, request.error["code"]) == (400, "invalid_argument")
    assert request.error["message"].startswith("process_id: ")


def test_an_id_that_nobody_has_is_not_found(answer: Send) -> None:
    for method, route, body in ROUTES:
        request = answer(method, route.format("nosuch"), body=body)
        assert (request.status, request.error["code"]) == (404, "not_found")
        assert "nosuch" in request.error["message"]
