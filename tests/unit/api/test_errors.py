"""Every failure is ``{"error": {code, message, hint}}`` with the status of its code, and tells no secret."""

import contextlib
import json
from collections.abc import Callable

import httpx
import pytest

from squib.api.errors import HTTP_STATUS, http_status
from squib.api.routes import vms
from squib.core.engine import Engine
from squib.errors import SquibError
from squib.protocol.errors import BY_CODE
from tests.fakes.asgi import Request
from tests.fakes.engine import Rig

OverHttp = Callable[[], contextlib.AbstractAsyncContextManager[tuple[Engine, httpx.AsyncClient]]]
Send = Callable[..., Request]


def test_every_code_has_a_status_of_an_error() -> None:
    assert HTTP_STATUS.keys() == BY_CODE.keys()
    assert all(400 <= status < 600 for status in HTTP_STATUS.values())


def test_an_error_without_a_code_is_a_fault() -> None:
    assert http_status(SquibError("what failed")) == HTTP_STATUS["internal"] == 500


@pytest.mark.parametrize("cls", BY_CODE.values())
def test_an_error_of_the_engine_is_told_with_its_status(
    cls: type[SquibError], answer: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(engine: Engine, ref: str) -> None:
        raise cls("what failed", hint="what to do", detail="evidence \udcff")

    monkeypatch.setattr(vms, "get_vm", fail)
    request = answer("GET", "/v1/vms/web")
    assert request.status == HTTP_STATUS[cls.code]
    assert request.error == {
        "code": cls.older_code or cls.code,
        "message": "what failed",
        "hint": "what to do",
        "detail": "evidence \udcff",
    }


@pytest.mark.anyio
async def test_a_fault_is_told_without_its_content(over_http: OverHttp, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(engine: Engine, ref: str) -> None:
        raise ZeroDivisionError("hunter2")

    monkeypatch.setattr(vms, "get_vm", fail)

    async with over_http() as (engine, http):
        response = await http.get("/v1/vms/web")
        assert response.status_code == 500
        error = response.json()["error"]
        assert (error["code"], "ZeroDivisionError" in error["message"]) == ("internal", True)
        assert "squib logs --engine" in error["hint"] and "hunter2" not in response.text
        assert engine.idle_s > 0, "the request has ended"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/v1"),
        ("GET", "/v1/nosuch"),
        ("GET", "/v2/vms"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("PUT", "/v1/vms"),
        ("DELETE", "/v1/vms"),
        ("DELETE", "/v1/vms/"),
        ("GET", "/v1/vms/"),
        ("GET", "/v1/vms//start"),
        ("POST", "/v1/vms/web"),
        ("GET", "/v1/vms/web/exec"),
        ("PATCH", "/v1/engine"),
        ("GET", "//v1/vms"),
        ("OPTIONS", "/v1/vms"),
        ("GET", "/v1/vms/web/processes/p1/stdin"),
    ],
)
def test_an_unknown_route_or_method_is_not_found(method: str, path: str, answer: Send) -> None:
    request = answer(method, path)
    assert (request.status, request.error["code"]) == (404, "not_found")
    assert f"{method} {path}" in request.error["message"] and "openapi" in request.error["hint"]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (
            "/v1/vms",
            {"config": {"vcpu_count": 0}},
            "config.vcpu_count: Input should be greater than or equal to 1 (got 0)",
        ),
        ("/v1/vms", {"config": {"mem_size_mib": "lots"}}, "config.mem_size_mib: "),
        ("/v1/vms", {"config": {"vcpus": 2}}, "config.vcpus: unknown field"),
        ("/v1/vms", {"config": {"rootfs_path": "x"}}, "config.rootfs_path: 'x' is not an absolute path"),
        ("/v1/vms", {"config": {"rootfs_path": "/x\0"}}, "config.rootfs_path: contains a NUL byte"),
        ("/v1/vms", {"config": {"kernel_path": "/\udcff"}}, "config.kernel_path: "),
        ("/v1/vms", {"config": {"boot_args": "a\nb"}}, "config.boot_args: 'a\\nb' is not one line"),
        ("/v1/vms", {"config": {"env_vars": {"1X": "a"}}}, "config.env_vars: invalid environment variable '1X'"),
        ("/v1/vms", {"config": {"\ud800": "a"}}, "config: "),
        ("/v1/vms", {"boot_timeout_s": 0}, "boot_timeout_s: Input should be greater than 0"),
        ("/v1/vms", {"start": "perhaps"}, "start: Input should be a valid boolean"),
        ("/v1/vms", [], "the body: "),
        ("/v1/vms", None, "the body: "),
        ("/v1/vms/web/start", {"boot_timeout_s": 1e9}, "boot_timeout_s: "),
        ("/v1/vms/web/start", {"boot_timeout_s": float("nan")}, "boot_timeout_s: "),
        ("/v1/vms/web/stop", {"timeout_s": -1}, "timeout_s: Input should be greater than or equal to 0 (got -1"),
        ("/v1/vms/web/exec", {}, "the body: give exactly one of argv, shell and login"),
        ("/v1/vms/web/exec", {"argv": ["a", "b\0"]}, "argv.1: contains a NUL byte"),
        ("/v1/vms/web/exec", {"argv": ["a"], "timeout_s": float("inf")}, "timeout_s: "),
        (
            "/v1/vms/web/processes/p1/signal",
            {"signal": 0},
            "signal: Input should be greater than or equal to 1 (got 0)",
        ),
        ("/v1/vms/web/processes/p1/signal", {"signal": 65}, "signal: "),
        ("/v1/images", {"rebuild": True}, "name: this field is required"),
        ("/v1/kernels", {"rebuild": 5}, "rebuild: "),
    ],
)
def test_a_refused_body_names_the_field(path: str, body: object, message: str, answer: Send) -> None:
    request = answer("POST", path, body=json.dumps(body).encode())
    assert (request.status, request.error["code"]) == (400, "invalid_argument")
    assert request.error["message"].startswith(message)


def test_all_that_is_wrong_is_told_at_once(answer: Send) -> None:
    request = answer("POST", "/v1/vms", body=b'{"config": {"vcpu_count": 0, "name": "-"}, "nonsense": 1}')
    assert all(field in request.error["message"] for field in ("config.vcpu_count", "config.name", "nonsense"))


def test_a_long_value_is_not_repeated(answer: Send) -> None:
    request = answer("POST", "/v1/vms", body=json.dumps({"config": {"name": "x" * 10_000}}).encode())
    assert len(request.received) < 500


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/vms", {"config": {"env_vars": {"TOKEN": 13371337}}}),
        ("/v1/vms", {"config": {"env_vars": "TOKEN=13371337"}}),
        ("/v1/vms", {"config": {"env_vars": {"TOKEN": "13371337\0"}}}),
        ("/v1/vms", {"config": {"env_vars": ["TOKEN=13371337"]}}),
        ("/v1/vms/web/exec", {"argv": ["a"], "env": {"TOKEN": 13371337}}),
        ("/v1/vms/web/exec", {"argv": ["a"], "env": "TOKEN=13371337"}),
    ],
)
def test_values_of_the_environment_are_in_no_message(path: str, body: object, answer: Send) -> None:
    request = answer("POST", path, body=json.dumps(body).encode())
    assert request.status == 400
    assert "env" in request.error["message"]
    assert b"13371337" not in request.received


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"nonsense", b"[" * 100_000])
def test_a_body_that_is_no_json_is_refused(text: bytes, answer: Send) -> None:
    request = answer("POST", "/v1/vms", body=text)
    assert (request.status, request.error["code"]) == (400, "invalid_argument")
    assert "body" in request.error["message"]


def test_a_body_that_is_not_said_to_be_json_is_refused_with_what_to_type(answer: Send) -> None:
    """A browser sends such a body across origins without asking."""
    for headers in ((), [("content-type", "text/plain")], [("content-type", "application/x-www-form-urlencoded")]):
        request = answer("POST", "/v1/vms", body=b"{}", headers=headers)
        assert (request.status, request.error["code"]) == (400, "invalid_argument")
        assert "Content-Type: application/json" in request.error["hint"]


@pytest.mark.parametrize("query", ["lines=-1", "lines=x", "follow=perhaps"])
def test_a_refused_query_names_the_field(query: str, answer: Send) -> None:
    request = answer("GET", f"/v1/engine/logs?{query}")
    assert request.status == 400
    assert request.error["message"].startswith(query.partition("=")[0] + ": ")


@pytest.mark.anyio
async def test_a_conflict_is_told(rig: Rig, over_http: OverHttp) -> None:
    async with over_http() as (_, http):
        body = {"config": rig.config.model_dump(exclude_unset=True) | {"name": "web"}}
        assert (await http.post("/v1/vms", json=body)).status_code == 201
        taken = await http.post("/v1/vms", json=body)
        assert (taken.status_code, taken.json()["error"]["code"]) == (409, "name_taken")
        wrong = await http.post("/v1/vms/web/exec", json={"argv": ["true"]})
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (409, "wrong_state")
        assert wrong.json()["error"]["hint"] == "squib start web"


@pytest.mark.anyio
async def test_a_boot_that_fails_is_told_with_the_console_and_leaves_nothing(rig: Rig, over_http: OverHttp) -> None:
    async with over_http() as (engine, http):
        rig.driver.behaviour = "--die"
        body = {"config": rig.config.model_dump(exclude_unset=True), "start": True}
        response = await http.post("/v1/vms", json=body)
        assert (response.status_code, response.json()["error"]["code"]) == (502, "boot_failed")
        assert "last line" in response.json()["error"]["detail"]
        assert engine.store.list_vms() == [] == engine.store.leases()
