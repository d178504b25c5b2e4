"""The HTTP server of one listening socket, with limits on its connections.

The limits are the number of open connections, and how long a client may take to send the head of a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from squib.api.guards import MAX_BODY_BYTES

log = logging.getLogger("squib.connections")

MAX_MESSAGE_BYTES = MAX_BODY_BYTES
"""The limit of a WebSocket message. A longer one closes the connection."""
HEADER_TIMEOUT_S = 10.0
"""How long a client may take to send the head of a request."""
_KEEPALIVE_S = 75
"""How long an idle connection is kept: well above clients, which close theirs after 4 s (version 0.1.0: 5 s)."""
_RECENT_S = 10.0
"""A connection whose last response is this recent is not closed to make room: its client may be about to use it."""
_BACKLOG = 2048
MAX_CONNECTIONS = 1000
_CROWDED_PAUSE_S = 0.01
"""A pause after each connection above the limit, so that a flood of them takes little time."""
_NO_FILES_PAUSE_S = 0.1


class Server(uvicorn.Server):
    """uvicorn on one listening socket, without signal handlers.

    At most ``max_connections`` are open. For one more, the connection that has been without a request for longest is
    closed: first those that never sent one.
    """

    def __init__(self, app: ASGIApp, listener: socket.socket, max_connections: int = MAX_CONNECTIONS) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=H11Protocol,
                ws="websockets-sansio",
                workers=1,
                log_config=None,
                access_log=False,
                lifespan="off",
                proxy_headers=False,
                timeout_graceful_shutdown=2,
                timeout_keep_alive=_KEEPALIVE_S,
                ws_max_size=MAX_MESSAGE_BYTES,
                ws_ping_interval=None,  # the routes send often enough, and a suspended client must not time out
                ws_per_message_deflate=False,
            )
        )
        self._listener = listener
        self._max_connections = max_connections
        self._accepting: asyncio.Task[None] | None = None
        self._new: dict[_Connection, float] = {}  # those without a complete request, and since when
        self._idle: dict[_Connection, float] = {}  # those that wait for the next request, and since when
        self.answering = asyncio.Event()

    async def answer(self) -> None:
        """Serve requests until ``should_exit`` is set."""
        try:
            await self.serve([])
        finally:
            self._stop_accepting()

    def capture_signals(self) -> Any:
        """Leave signals to the engine."""
        return contextlib.nullcontext()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections."""
        await super().startup(sockets)
        self._listener.setblocking(False)
        self._listener.listen(_BACKLOG)
        self._accepting = asyncio.create_task(self._accept(), name="accept connections")
        self.answering.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more connections, and wait for the requests under way."""
        self._stop_accepting()
        await super().shutdown(sockets)

    def _stop_accepting(self) -> None:
        if self._accepting:
            self._accepting.cancel()
        self._listener.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # no descriptors are left, or the client has gone
                log.warning("connections cannot be accepted: %s", error.strerror)
                self._make_room()
                await asyncio.sleep(_NO_FILES_PAUSE_S)
                continue
            crowded = len(self.server_state.connections) >= self._max_connections
            if crowded and not self._make_room():
                log.warning("more than %d connections: new ones are closed", self._max_connections)
                connection.close()
            else:
                try:
                    await loop.connect_accepted_socket(self._connection, connection)
                except OSError:  # it has gone
                    connection.close()
            if crowded:
                await asyncio.sleep(_CROWDED_PAUSE_S)

    def _connection(self) -> _Connection:
        return _Connection(self)

    def _make_room(self) -> bool:
        """Close the connection that has been without a request for longest."""
        now = asyncio.get_running_loop().time()
        for waiting, allowed_s in ((self._new, 0.0), (self._idle, _RECENT_S)):
            for connection, since in waiting.items():
                if now - since < allowed_s:
                    break
                log.warning("%d connections: those without a request are closed", self._max_connections)
                connection.close()
                return True
        return False

    def on_new(self, connection: _Connection) -> None:
        """Note that a connection waits for the head of a request."""
        self._forget(connection)
        self._new[connection] = asyncio.get_running_loop().time()

    def on_idle(self, connection: _Connection) -> None:
        """Note that a connection's request has been answered."""
        self._forget(connection)
        self._idle[connection] = asyncio.get_running_loop().time()

    def on_busy(self, connection: _Connection) -> None:
        """Note that a connection has a request, or is closed."""
        self._forget(connection)

    def _forget(self, connection: _Connection) -> None:
        self._new.pop(connection, None)
        self._idle.pop(connection, None)


class _Connection(H11Protocol):
    """An HTTP connection.

    It is closed if the head of a request does not arrive within `HEADER_TIMEOUT_S`.
    """

    def __init__(self, server: Server) -> None:
        super().__init__(config=server.config, server_state=server.server_state, app_state={})
        self._owner = server
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state["connection"] = transport.get_extra_info("socket")
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        is_websocket = self.transport.get_protocol() is not self
        if is_websocket or (self.cycle and not self.cycle.response_complete):
            self._end_wait()
            self._owner.on_busy(self)
        elif self._head_timer is None:
            self._await_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing() and self.cycle.response_complete:
            self._owner.on_idle(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_wait()
        self._owner.on_busy(self)
        super().connection_lost(exc)

    def close(self) -> None:
        """Close the connection, which has no request."""
        self._end_wait()
        self._owner.on_busy(self)
        self.transport.abort()

    def _await_head(self) -> None:
        self._owner.on_new(self)
        self._head_timer = self.loop.call_later(HEADER_TIMEOUT_S, self.close)

    def _end_wait(self) -> None:
        if self._head_timer:
            self._head_timer.cancel()
            self._head_timer = None
