"""The httpx transport to an engine: httpcore's connection pool with custom network streams.

httpx reads the response only after it has sent the whole request. If the guest rejects an upload early, for example
because its disk is full, httpx would still send the rest, which may be endless. These streams stop sending when the
response arrives.

Unix socket paths may have any length. Reads and writes on a Unix socket can be cancelled at any time. With anyio's
stream, httpcore's default, a cancellation sometimes makes the event loop print a traceback.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpcore
import httpx

from squib.host import sockets

_CONNECT_RETRY_S = 0.01


class EngineTransport(httpx.AsyncBaseTransport):
    """A transport over the Unix socket ``socket_path``, or over TCP if that is ``None``.

    Set ``tls`` for https URLs.
    """

    def __init__(self, *, socket_path: Path | None, limits: httpx.Limits, tls: bool) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context() if tls else None,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            uds=None if socket_path is None else str(socket_path),
            network_backend=_Backend(),
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


class _Backend(httpcore.AsyncNetworkBackend):
    def __init__(self) -> None:
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(self, *args: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        return _Stream(await self._inner.connect_tcp(*args, **options))

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Any = None
    ) -> httpcore.AsyncNetworkStream:
        with _errors_as(httpcore.ConnectTimeout, httpcore.ConnectError):
            async with asyncio.timeout(timeout):
                return _Stream(_UnixStream(await _connect(Path(path))))

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


async def _connect(path: Path) -> socket.socket:
    while True:
        try:
            return sockets.connect(path, blocking=False)
        except BlockingIOError:  # the listen backlog is full
            await asyncio.sleep(_CONNECT_RETRY_S)


class _Stream(httpcore.AsyncNetworkStream):
    """A connection that stops sending when response data has arrived."""

    def __init__(self, inner: httpcore.AsyncNetworkStream) -> None:
        self._inner = inner

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return await self._inner.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if self._inner.get_extra_info("is_readable"):
            raise httpcore.WriteError("the response has already arrived")  # httpcore then reads it
        await self._inner.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        # Plain stream: with TLS, readable data is not always a response.
        return await self._inner.start_tls(ssl_context, server_hostname, timeout)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _UnixStream(httpcore.AsyncNetworkStream):
    """A connected Unix socket.

    Each read and write first yields to other tasks, so that a busy connection does not starve them.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._users = 0
        self._closed = False

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _errors_as(httpcore.ReadTimeout, httpcore.ReadError):
            async with asyncio.timeout(timeout):
                with self._in_use():
                    await asyncio.sleep(0)
                    return await asyncio.get_running_loop().sock_recv(self._socket, max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _errors_as(httpcore.WriteTimeout, httpcore.WriteError):
            async with asyncio.timeout(timeout):
                with self._in_use():
                    await asyncio.sleep(0)
                    await asyncio.get_running_loop().sock_sendall(self._socket, buffer)

    async def aclose(self) -> None:
        """Close the socket. Pending reads and writes raise an error. Idempotent."""
        if not self._closed:
            self._closed = True
            with contextlib.suppress(OSError):  # the peer has disconnected
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes pending reads and writes
            if not self._users:
                self._socket.close()

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        """Keep the file descriptor open for the duration of the block.

        If it were closed and its number reused, the event loop would wait for the wrong file.
        """
        self._check_open()
        self._users += 1
        try:
            yield
            self._check_open()
        finally:
            self._users -= 1
            if self._closed and not self._users:
                self._socket.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ConnectionAbortedError("the connection was closed locally")

    def get_extra_info(self, info: str) -> Any:
        if info != "is_readable":
            return None
        if self._closed:
            return True  # a read fails immediately
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        return bool(poller.poll(0))


@contextlib.contextmanager
def _errors_as(timeout: type[Exception], other: type[Exception]) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise timeout(str(error)) from error
    except OSError as error:
        raise other(str(error)) from error
