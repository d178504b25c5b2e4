"""Checks of every request before its route: Host, token and body size."""

from __future__ import annotations

import hmac
import re
import shlex
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from squib.api.errors import error_response
from squib.api.exchange import Exchange
from squib.core.engine import Engine
from squib.errors import HostNotAllowed, SquibError, Unauthorized
from squib.models import OLDER_CLIENT
from squib.protocol.headers import CLIENT_HEADER

MAX_BODY_BYTES = 16 << 20
"""The limit for every request except streams of bytes into a guest or a snapshot, which are taken as they come.

Linux takes 2 MiB of arguments and environment. In JSON a byte may be escaped to six.
"""
_STREAMED = re.compile(r"POST .*/stdin|PUT .*/files(/tar)?|POST /v1/snapshots/import")
_POLICY_VIOLATION = 1008
_OLDER_AGENT = "python-httpx/"
"""How the User-Agent of squib 0.1.0 begins, which does not send `CLIENT_HEADER`."""
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:]+)(:[0-9]+)?")


class Guards:
    """ASGI middleware that checks the Host header, token and body size.

    The Host header must name an allowed host. This keeps a web page from reaching a local engine through DNS rebinding.
    Browsers do not apply the same-origin policy to WebSockets, so a WebSocket's Origin is checked too. The token is
    checked if one is set. The engine counts as active during a request.
    """

    def __init__(self, app: ASGIApp, engine: Engine, *, allowed_hosts: Collection[str], token: str | None) -> None:
        self._app = app
        self._engine = engine
        self._allowed_hosts = frozenset(allowed_hosts)
        self._token = token.encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        OLDER_CLIENT.set(CLIENT_HEADER not in headers and headers.get("user-agent", "").startswith(_OLDER_AGENT))
        if scope["type"] == "http":
            exchange = Exchange(headers, receive, send)
            receive, send = exchange.receive, exchange.send
        try:
            self._check(headers)
            if scope["type"] == "websocket":
                self._check_origin(headers)
            elif not _STREAMED.fullmatch(f"{scope['method']} {scope['path']}"):
                exchange.limit(MAX_BODY_BYTES)
        except SquibError as error:
            if scope["type"] == "http":
                exchange.close()  # a client without access cannot occupy connections
            await refuse(error, scope, receive, send)
            return
        with self._engine.activity():
            await self._app(scope, receive, send)

    def _check(self, headers: Headers) -> None:
        host = host_of(headers.get("host", ""))
        if not host or host not in self._allowed_hosts:
            raise HostNotAllowed(
                f"the engine does not serve the host name {host[:100]!r}",
                hint=f"squib serve --allow-host {shlex.quote(host[:100]) if host else 'NAME'}",
            )
        if self._token is None:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode(), self._token):
            raise Unauthorized(
                "the token is missing or wrong", hint="set SQUIB_TOKEN to the token that squib serve printed"
            )

    def _check_origin(self, headers: Headers) -> None:
        origin = headers.get("origin")
        if origin is not None and host_of(origin.partition("://")[2]) not in self._allowed_hosts:
            raise HostNotAllowed(
                f"the engine does not accept WebSockets from pages of {origin[:100]!r}",
                hint="squib serve --allow-host NAME",
            )


async def refuse(error: SquibError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request or a WebSocket handshake with an error."""
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
        return
    await error_response(error)(scope, receive, send)


def host_of(header: str) -> str:
    """Return the host of a Host header without its port, empty if invalid.

    ``[::1]:80`` gives ``[::1]``.
    """
    found = _HOST.fullmatch(header.lower())
    return found[1] if found else ""
