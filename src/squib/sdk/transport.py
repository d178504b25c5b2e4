"""How requests reach an engine: httpx's transport, but for a request whose answer comes before its body has ended.

Of a long body httpx would read no answer before the end. So an engine whose guest has refused a file (the disk is full)
would be sent the rest of it, which may have no end.
"""

from __future__ import annotations

import ssl
from typing import Any

import httpcore
import httpx


class EngineTransport(httpx.AsyncHTTPTransport):
    """Over a unix socket, or over TCP with ``uds`` left out."""

    def __init__(self, *, uds: str | None, limits: httpx.Limits, verify: bool) -> None:
        super().__init__(uds=uds, limits=limits, verify=verify)
        self._pool._network_backend = _Backend(self._pool._network_backend)


class _Backend(httpcore.AsyncNetworkBackend):
    def __init__(self, inner: httpcore.AsyncNetworkBackend) -> None:
        self._inner = inner

    async def connect_tcp(self, *args: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        return _Stream(await self._inner.connect_tcp(*args, **options))

    async def connect_unix_socket(self, *args: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        return _Stream(await self._inner.connect_unix_socket(*args, **options))

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


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
