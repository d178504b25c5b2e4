"""The httpx transport to an engine.

It uses httpcore's connection pool with the connections of `squib.sdk.streams`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpcore
import httpx

from squib.sdk.liveness import Liveness
from squib.sdk.streams import Backend

_KEEPALIVE_S = 4.0
"""How long an idle connection is kept: less than engines keep one. The first version closes it after 5 s."""
_MAX_IDLE = 20


class EngineTransport(httpx.AsyncBaseTransport):
    """A transport over a Unix socket, or over TCP without ``socket_path``.

    Set ``tls`` for https URLs. Reads and writes with a timeout, which may be infinite, raise `NotResponding` if the
    engine does not respond.
    """

    def __init__(self, *, socket_path: Path | None, tls: bool, liveness: Liveness) -> None:
        # Without TLS no context: the CA certificates take 20 ms to load.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context() if tls else None,
            max_connections=None,
            max_keepalive_connections=_MAX_IDLE,
            keepalive_expiry=_KEEPALIVE_S,
            uds=None if socket_path is None else str(socket_path),
            network_backend=Backend(liveness),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; return when the response headers have arrived.

        Raises `httpx.TransportError`.
        """
        assert isinstance(request.stream, httpx.AsyncByteStream)
        url = httpcore.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        )
        with _httpx_errors():
            response = await self._pool.handle_async_request(
                httpcore.Request(
                    request.method,
                    url,
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=_ResponseStream(response),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        """Close all connections. Idempotent."""
        await self._pool.aclose()


class _ResponseStream(httpx.AsyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _httpx_errors():
            async for chunk in self._response.aiter_stream():
                yield chunk

    async def aclose(self) -> None:
        await self._response.aclose()


@contextlib.contextmanager
def _httpx_errors() -> Iterator[None]:
    """Convert httpcore errors to the httpx errors of the same name."""
    try:
        yield
    except _HTTPCORE_ERRORS as error:
        raise getattr(httpx, type(error).__name__)(str(error)) from error


_HTTPCORE_ERRORS = (
    httpcore.ConnectTimeout,
    httpcore.ReadTimeout,
    httpcore.WriteTimeout,
    httpcore.PoolTimeout,
    httpcore.ConnectError,
    httpcore.ReadError,
    httpcore.WriteError,
    httpcore.LocalProtocolError,
    httpcore.RemoteProtocolError,
    httpcore.UnsupportedProtocol,
)
