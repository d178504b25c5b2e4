"""The connections to an engine, beneath httpcore.

httpcore reads the response only after it has sent the whole request. If the guest rejects an upload early, for example
because its disk is full, httpcore would still send the rest, which may be endless. These connections stop sending when
the response arrives, and are not used again after a request that was not sent to its end. They also know whether the
engine can have processed a request that got no response, and give up if the engine no longer responds (`Watcher`).

Unix socket paths may have any length. Reads and writes on a Unix socket can be cancelled at any time. With anyio's
stream, httpcore's default, a cancellation sometimes makes the event loop print a traceback.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import select
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakSet

import httpcore
import httpx

from squib.host import sockets
from squib.sdk.liveness import Liveness, Watcher

_CONNECT_RETRY_S = 0.01
_TCP_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
"""A connection is lost a minute after its peer, or a firewall on the way, has forgotten it."""


class NotProcessed(httpx.ReadError):
    """The connection ended before the engine could process the request."""


class NotResponding(httpx.ReadTimeout):
    """The engine does not respond."""


class Backend(httpcore.AsyncNetworkBackend):
    """Makes the connections of one client."""

    def __init__(self, liveness: Liveness) -> None:
        self._liveness = liveness
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(self, *args: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        """Connect to a TCP address."""
        options["socket_options"] = [*(options.get("socket_options") or ()), *_TCP_KEEPALIVE]
        return Connection(await self._inner.connect_tcp(*args, **options), self._liveness)

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Any = None
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the Unix socket at ``path``."""
        with _errors_as(httpcore.ConnectTimeout, httpcore.ConnectError):
            return Connection(_UnixStream(await connect(Path(path), timeout)), self._liveness)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await self._inner.sleep(seconds)


async def connect(path: Path, timeout_s: float | None = None) -> socket.socket:
    """Connect to the Unix socket at ``path``; wait while its backlog is full.

    Raises `TimeoutError`, `OSError`.
    """
    async with asyncio.timeout(timeout_s):
        while True:
            try:
                return sockets.connect(path, blocking=False)
            except BlockingIOError:
                await asyncio.sleep(_CONNECT_RETRY_S)


class Connection(httpcore.AsyncNetworkStream):
    """A connection to an engine, used for one request after another.

    A read or write with a ``timeout`` raises `NotResponding` if the engine does not respond to a probe; one without a
    timeout waits for ever. ``stops_early`` says that readable data is a response: with TLS it need not be.
    """

    def __init__(self, inner: httpcore.AsyncNetworkStream, liveness: Liveness, *, stops_early: bool = True) -> None:
        self._inner = inner
        self._liveness = liveness
        self._stops_early = stops_early
        self._watcher = Watcher(liveness, inner.aclose)
        self._answered = True  # whether the response to the last request has begun
        self._incomplete = False  # whether a request was not sent to its end
        _connections.add(self)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return the next bytes, ``b""`` at the end.

        Raises `NotProcessed`, `NotResponding`.
        """
        try:
            with self._watched(timeout):
                data = await self._inner.read(max_bytes, _finite(timeout))
        except httpcore.ReadError as error:
            if not self._answered and (self._incomplete or isinstance(error.__cause__, _Unread)):
                raise NotProcessed(str(error)) from error
            raise
        if data:
            self._answered = True
            self._liveness.heard()
        elif not self._answered and self._incomplete:
            raise NotProcessed("the connection was closed")
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send bytes. Raises `NotResponding`."""
        if not buffer:  # the end of a body whose length was announced
            return
        self._answered = False
        if self._stops_early and self._inner.get_extra_info("is_readable"):
            self._incomplete = True
            raise httpcore.WriteError("the response has already arrived")  # httpcore then reads it
        try:
            with self._watched(timeout):
                await self._inner.write(buffer, _finite(timeout))
        except httpcore.WriteError:
            self._incomplete = True
            raise

    @contextlib.contextmanager
    def _watched(self, timeout: float | None) -> Iterator[None]:
        if timeout is None:
            yield
            return
        self._watcher.begin()
        try:
            yield
        except (httpcore.ReadError, httpcore.WriteError) as error:
            if self._watcher.lost:
                raise NotResponding("the engine does not respond") from error
            raise
        finally:
            self._watcher.end()

    async def aclose(self) -> None:
        """Close the connection. Idempotent."""
        self._watcher.close()
        await self._inner.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        """Return the connection with TLS."""
        inner = await self._inner.start_tls(ssl_context, server_hostname, timeout)
        return Connection(inner, self._liveness, stops_early=False)

    def get_extra_info(self, info: str) -> Any:
        """Return what httpcore asks for."""
        if info == "is_readable" and self._incomplete:
            return True  # tells httpcore not to use this connection again
        return self._inner.get_extra_info(info)


_connections: WeakSet[Connection] = WeakSet()


def _close_in_child() -> None:
    """Close the connections that a forked process has inherited.

    While they are open, the engine takes the parent process for alive. Their descriptors stay in use, so that objects
    which close them close no other file.
    """
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for connection in list(_connections):
        inherited = connection.get_extra_info("socket")
        if inherited is not None and inherited.fileno() >= 0:
            os.dup2(null, inherited.fileno(), inheritable=False)
    os.close(null)


os.register_at_fork(after_in_child=_close_in_child)


def _finite(timeout: float | None) -> float | None:
    return None if timeout == math.inf else timeout


class _Unread(ConnectionResetError):
    """The peer has closed its end, or ended, and had not read what was sent.

    Linux reports ECONNRESET on a Unix socket only then (``unix_release_sock``); otherwise the peer's end is an end of
    file.
    """


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
                    try:
                        return await asyncio.get_running_loop().sock_recv(self._socket, max_bytes)
                    except ConnectionResetError as error:
                        raise _Unread(error.errno, error.strerror) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _errors_as(httpcore.WriteTimeout, httpcore.WriteError):
            async with asyncio.timeout(timeout):
                with self._in_use():
                    await asyncio.sleep(0)
                    await asyncio.get_running_loop().sock_sendall(self._socket, buffer)

    async def aclose(self) -> None:
        """Close the socket.

        Pending reads and writes raise an error. Idempotent.
        """
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
        if info == "socket":
            return self._socket
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
