"""Sending requests to an engine: connections, retries and deadlines."""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

import httpx

from squib.errors import EngineUnavailable, InvalidArgument
from squib.paths import Home
from squib.protocol.headers import CLIENT_HEADER
from squib.sdk.liveness import Liveness
from squib.sdk.local import describe_silence, ensure_engine
from squib.sdk.responses import error_of, not_understood
from squib.sdk.streams import NotProcessed, NotResponding
from squib.sdk.transport import EngineTransport
from squib.version import VERSION

_BASE_URL = "http://squib"
_CONNECT_TIMEOUT_S = 10.0
_ANSWER_TIMEOUT_S = 90.0
"""For GET requests. The engine itself gives up on a guest that makes no progress for 60 s.

Others, such as booting a VM or building an image, may take as long as the engine responds.
"""
PAUSES_S = (0.0, 0.05, 0.25)
"""Delays before each retry: a killed engine still accepts connections for a moment, and drops them."""
_IDEMPOTENT = ("GET", "DELETE")
REMOTE_HINT = "check SQUIB_URL, and that squib serve is running on that host"


class HTTPClient:
    """The part of `squib.EngineClient` that sends requests."""

    def __init__(self, *, url: str | None = None, token: str | None = None, home: Home | None = None) -> None:
        url = url or (None if home else os.environ.get("SQUIB_URL") or None)
        self._url = _checked_url(url) if url else None
        self._token = _checked_token(token or os.environ.get("SQUIB_TOKEN") or "") or None
        self._home = home or (None if self._url else Home.from_environment())
        self._http: httpx.AsyncClient | None = None
        self._liveness = Liveness(self._probe)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._url or self._home})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def home(self) -> Home | None:
        """The local engine's state directory, ``None`` for a remote engine."""
        return self._home

    @property
    def url(self) -> str | None:
        """The remote engine's URL, or ``None`` for a local engine."""
        return self._url

    @property
    def where(self) -> str:
        """The remote engine's URL, or the local engine's state directory."""
        return self._url or str(self._home and self._home.root)

    @property
    def headers(self) -> dict[str, str]:
        """The authorization headers of every request.

        They contain the token.
        """
        return {"authorization": f"Bearer {self._token}"} if self._url and self._token else {}

    @property
    def key(self) -> tuple[str, ...]:
        """A key that is equal for clients with the same engine and token."""
        return (self._url or "", self._token or "", str(self._home and self._home.root))

    async def close(self) -> None:
        """Close the connections.

        The engine and its VMs keep running. Idempotent.
        """
        await self._liveness.aclose()
        if self._http:
            await self._http.aclose()
            self._http = None

    async def request(
        self, method: str, path: str, body: object | None = None, *, timeout_s: float | None = math.inf
    ) -> Any:
        """Send ``body`` as JSON and return the parsed response.

        An empty response gives ``None``. ``timeout_s`` is as in `stream`, and at most 90 s for a GET request.

        Raises the engine's `SquibError`, `EngineUnavailable`, `EngineStartFailed`.
        """
        content = None if body is None else json.dumps(body).encode()
        if method == "GET" and timeout_s is not None:
            timeout_s = min(timeout_s, _ANSWER_TIMEOUT_S)
        async with self.stream(method, path, content, timeout_s=timeout_s) as response:
            answer = await response.aread()
        try:
            return json.loads(answer) if answer else None
        except (ValueError, RecursionError):
            raise not_understood(self.where) from None

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        content: bytes | AsyncIterable[bytes] | None = None,
        *,
        timeout_s: float | None = math.inf,
        accept: str = "*/*",
    ) -> AsyncIterator[httpx.Response]:
        """Send a request and stream its response.

        ``timeout_s`` is how many seconds to wait for data. By default it waits as long as the engine responds to other
        requests; ``None`` waits for ever.

        A request is sent again if the engine cannot have processed it, or if it is a GET or a DELETE.

        Raises `EngineUnavailable` if no data arrives in time, and the other errors of `request`.
        """
        headers = {"accept": accept} | ({"content-type": "application/json"} if isinstance(content, bytes) else {})
        http = self._client()
        timeout = httpx.Timeout(
            connect=_CONNECT_TIMEOUT_S, read=timeout_s, write=math.inf if timeout_s is not None else None, pool=None
        )
        body = content if content is None or isinstance(content, bytes) else _Body(content)
        request = http.build_request(method, f"/v1{path}", content=body, headers=headers, timeout=timeout)
        what = f"{method} {path.partition('?')[0]}"
        try:
            response = await self._send(http, request, body)
            try:
                if response.status_code >= 300:
                    raise error_of(response.status_code, await response.aread(), response.headers)
                yield response
            finally:
                await response.aclose()
        except (NotResponding, httpx.ConnectTimeout) as error:
            raise self.not_responding(what) from error
        except httpx.TimeoutException as error:
            raise EngineUnavailable(
                f"the engine {self.where} did not answer {what} within {timeout_s:g} s",
                hint="squib logs --engine shows the engine's log",
            ) from error
        except httpx.TransportError as error:
            raise EngineUnavailable(
                f"the connection to the engine {self.where} broke during {what}: {error or type(error).__name__}",
                hint="squib logs --engine shows the engine's log",
            ) from error

    async def _send(
        self, http: httpx.AsyncClient, request: httpx.Request, body: bytes | _Body | None
    ) -> httpx.Response:
        for pause_s in PAUSES_S:
            try:
                return await http.send(request, stream=True)
            except httpx.ConnectError as error:
                if self._home is None:
                    raise EngineUnavailable(f"no engine answers at {self._url}: {error}", hint=REMOTE_HINT) from error
            except NotProcessed:
                if isinstance(body, _Body) and body.begun:
                    raise
            except httpx.TimeoutException:
                raise
            except httpx.TransportError:
                if request.method not in _IDEMPOTENT:
                    raise
            await asyncio.sleep(pause_s)
            if self._home:
                await ensure_engine(self._home)
        return await http.send(request, stream=True)

    async def responds(self) -> bool:
        """Return whether the engine responds. Takes at most 12 s."""
        return await self._liveness.responds()

    async def _probe(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                try:
                    await self._client().get("/v1/engine", timeout=timeout_s)
                except httpx.TransportError:
                    await asyncio.sleep(timeout_s)  # it may be about to restart
                    return False
        except TimeoutError:
            return False
        return True

    def not_responding(self, what: str) -> EngineUnavailable:
        """Return the error for an engine that does not respond to ``what``."""
        if self._home is None:
            return EngineUnavailable(f"the engine {self._url} does not respond to {what}", hint=REMOTE_HINT)
        reason, hint = describe_silence(self._home)
        return EngineUnavailable(f"the engine {self.where} does not respond to {what}: {reason}", hint=hint)

    def _client(self) -> httpx.AsyncClient:
        if self._http is None:
            tls = (self._url or "").startswith("https")
            socket_path = self._home.engine_socket if self._home else None
            self._http = httpx.AsyncClient(
                base_url=self._url or _BASE_URL,
                headers=self.headers | {CLIENT_HEADER: VERSION},
                transport=EngineTransport(socket_path=socket_path, tls=tls, liveness=self._liveness),
                trust_env=False,
            )
        return self._http


class _Body:
    """A request body in chunks that records whether sending has begun.

    Once sending has begun, the request cannot be sent again.
    """

    def __init__(self, chunks: AsyncIterable[bytes]) -> None:
        self._chunks = chunks
        self.begun = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        self.begun = True
        return aiter(self._chunks)


def _checked_url(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host or not 0 < (parsed.port or 80) < 1 << 16:
        raise InvalidArgument(
            f"invalid engine URL {url!r}", hint="set SQUIB_URL to a URL such as http://127.0.0.1:8765"
        )
    return url


def _checked_token(token: str) -> str:
    token = token.strip()
    if not token.isascii() or not token.isprintable():
        raise InvalidArgument("the token contains invalid characters", hint="check SQUIB_TOKEN")
    return token
