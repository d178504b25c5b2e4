"""The transport to an engine: httpcore's connection pool behind httpx, with network streams of our own.

httpx reads no response before it has sent the whole request. An engine whose guest rejects a file, because its disk is
full, would still be sent the rest of it, which may be endless. Our streams stop sending when a response has begun.

Unix socket paths may have any length here. Waiting on a unix socket may be cancelled at any moment: anyio's stream,
which httpcore would use, then sometimes makes the event loop print a traceback.
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

_CONNECT_AGAIN_S = 0.01


class EngineTransport(httpx.AsyncBaseTransport):
    """Send requests over the unix socket at ``socket_path``, or over TCP without one (``tls`` for https URLs)."""

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
        """Send ``request``; return when the head of the response is there. Raises `httpx.TransportError`."""
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
    """Raise httpcore's errors as httpx's, which have the same names."""
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
        except BlockingIOError:  # its queue is full
            await asyncio.sleep(_CONNECT_AGAIN_S)


class _Stream(httpcore.AsyncNetworkStream):
    """A connection that takes no more of a request when something has come back."""

    def __init__(self, inner: httpcore.AsyncNetworkStream) -> None:
        self._inner = inner

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return await self._inner.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if self._inner.get_extra_info("is_readable"):
            raise httpcore.WriteError("the answer is there already")  # httpcore then reads it
        await self._inner.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        # (What comes back in TLS need not be an answer.)
        return await self._inner.start_tls(ssl_context, server_hostname, timeout)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _UnixStream(httpcore.AsyncNetworkStream):
    """A connected unix socket. Other tasks run before each of its steps: a busy connection must not shut them out."""

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
        """Those who wait in `read` and `write` get an error. Idempotent."""
        if not self._closed:
            self._closed = True
            with contextlib.suppress(OSError):  # the peer is gone
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes them
            if not self._users:
                self._socket.close()

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        """The descriptor stays for the block: the event loop would wait for whatever has its number next."""
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
            raise ConnectionAbortedError("this end of the connection was closed")

    def get_extra_info(self, info: str) -> Any:
        if info != "is_readable":
            return None
        if self._closed:
            return True  # a read says so at once
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
