"""What every request passes first: its Host, its token, the size of its body."""

import asyncio
import hmac
from collections.abc import Callable

import pytest

from squib.api import guards
from squib.api.app import create_app
from squib.api.guards import MAX_BODY_BYTES, host_of
from tests.fakes.asgi import JSON, Handshake, Request
from tests.fakes.engine import Rig
from tests.fakes.guest import running_vm

Send = Callable[..., Request]
Shake = Callable[..., Handshake]
TOKEN = "correct-horse-battery-staple"
PIECE = b"x" * 65536


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ("squib", "squib"),
        ("Squib:80", "squib"),
        ("127.0.0.1:8765", "127.0.0.1"),
        ("[::1]", "[::1]"),
        ("[::1]:80", "[::1]"),
        ("[FE80::1]:80", "[fe80::1]"),
        ("vms.example.org", "vms.example.org"),
        ("", ""),
        (":80", ""),
        ("[::1", ""),
        ("[::1]evil", ""),
        ("[::1]:80:90", ""),
        ("squib:http", ""),
        ("squib@evil", "squib@evil"),
        ("a]b", ""),
        ("squib, evil", "squib, evil"),
        ("::1", ""),
    ],
)
def test_the_host_of_a_header_is_what_is_before_its_port(header: str, host: str) -> None:
    assert host_of(header) == host


@pytest.mark.parametrize(
    "host", ["evil.example.org", "squib.evil", "evil:80", "", None, "127.0.0.1", "[::1]", "squib:x"]
)
@pytest.mark.parametrize("path", ["/v1/vms", "/v1/openapi.json", "/nosuch", "/v1/vms/a/processes/p1/stdin"])
def test_a_foreign_host_is_refused_on_every_path(host: str | None, path: str, answer: Send) -> None:
    request = answer("GET", path, host=host)
    assert (request.status, request.error["code"]) == (403, "host_not_allowed")
    assert "--allow-host" in request.error["hint"]


@pytest.mark.parametrize("host", ["vms.example.org", "VMS.Example.org:8765", "[::1]:80"])
def test_an_allowed_host_is_answered(host: str, answer: Send) -> None:
    assert answer("GET", "/v1/vms", host=host, app={"allowed_hosts": ["vms.example.org", "[::1]"]}).status == 200


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer  {TOKEN}",
        "Bearer é",
        f"Bearer {TOKEN.upper()}",
    ],
)
@pytest.mark.parametrize("path", ["/v1/vms", "/v1/openapi.json", "/nosuch"])
def test_without_the_token_nothing_is_answered(authorization: str | None, path: str, answer: Send) -> None:
    headers = [("authorization", authorization)] if authorization is not None else []
    request = answer("GET", path, headers=headers, app={"token": TOKEN})
    assert (request.status, request.error["code"]) == (401, "unauthorized")
    assert TOKEN.encode() not in request.received


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_with_the_token_requests_are_answered(scheme: str, answer: Send) -> None:
    assert (
        answer("GET", "/v1/vms", headers=[("authorization", f"{scheme} {TOKEN}")], app={"token": TOKEN}).status == 200
    )


def test_the_host_is_checked_before_the_token(answer: Send) -> None:
    assert answer("GET", "/v1/vms", host="evil", app={"token": TOKEN}).status == 403


def test_tokens_are_compared_in_constant_time(answer: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    class Noted:
        @staticmethod
        def compare_digest(given: bytes, wanted: bytes) -> bool:
            compared.append((given, wanted))
            return hmac.compare_digest(given, wanted)

    monkeypatch.setattr(guards, "hmac", Noted)
    answer("GET", "/v1/vms", headers=[("authorization", "Bearer wrong")], app={"token": TOKEN})
    assert compared == [(b"wrong", TOKEN.encode())]


def test_a_refused_request_closes_its_connection(answer: Send) -> None:
    for options in ({"host": "evil"}, {"app": {"token": TOKEN}}):
        assert ("connection", "close") in answer("GET", "/v1/vms", **options).answered  # type: ignore[arg-type]
    assert ("connection", "close") not in answer("GET", "/v1/vms").answered


@pytest.mark.parametrize("host", ["", ":80", "[", "a:b:c", "a:x"])
def test_an_invalid_host_is_never_allowed(host: str, answer: Send) -> None:
    assert answer("GET", "/v1/vms", host=host, app={"allowed_hosts": ("", "squib")}).status == 403


def too_large(request: Request) -> bool:
    return (request.status, request.error["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("length", [str(MAX_BODY_BYTES + 1), "9" * 30, "9" * 5000, "-1", "x", "1e3", "\u00b2"])
def test_a_body_that_is_said_to_be_too_large_is_not_read(length: str, answer: Send) -> None:
    assert too_large(answer("POST", "/v1/vms", headers=[*JSON, ("content-length", length)]))


def test_a_body_that_turns_out_too_large_is_refused(answer: Send) -> None:
    pieces = [PIECE] * (MAX_BODY_BYTES // len(PIECE) + 1)
    request = answer("POST", "/v1/vms", body=pieces)
    assert too_large(request)
    assert too_large(answer("POST", "/v1/vms/web/exec", body=pieces))


def test_a_body_of_the_limit_is_read(answer: Send) -> None:
    body = b'{"start": false, "x": "' + b"x" * (MAX_BODY_BYTES - 25) + b'"}'
    assert len(body) == MAX_BODY_BYTES
    request = answer("POST", "/v1/vms", body=body, headers=[*JSON, ("content-length", str(len(body)))])
    assert (request.status, request.error["message"]) == (400, "x: unknown field")


@pytest.mark.anyio
async def test_standard_input_has_no_limit(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "MAX_BODY_BYTES", limit := 1 << 20)
    count = 3 * limit // len(PIECE)

    async with asyncio.timeout(20), rig.engine() as engine, running_vm(engine, rig.config):
        app = create_app(engine)
        command = Request("POST", "/v1/vms/web/exec", b'{"argv": ["cat"], "stdin": true}')
        running = asyncio.create_task(command.send_to(app))
        await command.head.wait()
        path = "/v1/vms/web/processes/p1/stdin?close=true"
        stdin = await Request(
            "POST", path, [PIECE] * count, headers=[("content-length", str(count * len(PIECE)))]
        ).send_to(app)
        assert (stdin.status, stdin.json) == (200, {"written": count * len(PIECE)})
        await running
        assert command.received.count(b"x") >= count * len(PIECE)


@pytest.mark.anyio
async def test_a_refused_request_is_no_activity(rig: Rig) -> None:
    async with rig.engine() as engine:
        before = engine._last_activity
        assert (await Request("GET", "/v1/vms", host="evil").send_to(create_app(engine))).status == 403
        assert engine._last_activity == before
        assert (await Request("GET", "/v1/vms").send_to(create_app(engine))).status == 200
        assert engine._last_activity > before


# --- WebSockets ------------------------------------------------------------------------------------------------------

PTY = "/v1/vms/web/pty"


@pytest.mark.parametrize("host", ["evil.example.org", "", None, "127.0.0.1"])
@pytest.mark.parametrize("path", [PTY, "/v1/nosuch"])
def test_a_websocket_to_a_foreign_host_is_refused(host: str | None, path: str, shake_hands: Shake) -> None:
    handshake = shake_hands(path, host=host)
    assert (handshake.status, handshake.error["code"]) == (403, "host_not_allowed")


@pytest.mark.parametrize("authorization", [None, "", f"Bearer {TOKEN}x", f"Basic {TOKEN}"])
def test_a_websocket_without_the_token_is_refused(authorization: str | None, shake_hands: Shake) -> None:
    headers = [("authorization", authorization)] if authorization is not None else []
    handshake = shake_hands(PTY, headers=headers, app={"token": TOKEN})
    assert (handshake.status, handshake.error["code"]) == (401, "unauthorized")


def test_a_websocket_with_the_token_is_let_in(shake_hands: Shake) -> None:
    headers = [("authorization", f"Bearer {TOKEN}")]
    assert shake_hands(PTY, headers=headers, app={"token": TOKEN}, messages=["{}"]).status == 101


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example.org",
        "null",
        "",
        "squib",
        "http://squib.evil",
        "http://squib@evil",
        "file://",
        "http://[::1",
    ],
)
def test_a_websocket_of_a_foreign_page_is_refused(origin: str, shake_hands: Shake) -> None:
    handshake = shake_hands(PTY, headers=[("origin", origin)])
    assert (handshake.status, handshake.error["code"]) == (403, "host_not_allowed")
    assert repr(origin) in handshake.error["message"]


@pytest.mark.parametrize("origin", ["http://squib", "https://Squib:8443"])
def test_a_websocket_of_our_own_page_is_let_in(origin: str, shake_hands: Shake) -> None:
    assert shake_hands(PTY, headers=[("origin", origin)], messages=["{}"]).status == 101


def test_other_requests_may_come_from_any_page_that_may_send_them(answer: Send) -> None:
    """It is the token, and the rule of browsers on reading answers, that keeps those off."""
    assert answer("GET", "/v1/vms", headers=[("origin", "https://evil.example.org")]).status == 200


def test_a_server_that_cannot_refuse_with_a_body_refuses_all_the_same(shake_hands: Shake) -> None:
    handshake = shake_hands(PTY, host="evil", extensions=())
    assert (handshake.status, handshake.sent) == (403, [{"type": "websocket.close", "code": 1008}])


@pytest.mark.anyio
async def test_a_websocket_is_activity_while_it_is_open(rig: Rig) -> None:
    async with rig.engine() as engine:
        before = engine._last_activity
        app = create_app(engine)
        await Handshake(PTY, host="evil").send_to(app)
        assert engine._last_activity == before
        waits = asyncio.create_task(Handshake(PTY).send_to(app))
        while not engine._requests:
            await asyncio.sleep(0)
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)
        assert engine._requests == 0 and engine._last_activity > before
