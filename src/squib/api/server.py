"""The engine as a process: it serves the API on the state directory's unix socket and optionally on TCP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from squib.api.app import create_app
from squib.api.connections import Server
from squib.api.guards import host_of
from squib.core.lifecycle.release import kill_all
from squib.core.startup import open_engine
from squib.drivers.registry import find_drivers
from squib.errors import InvalidArgument
from squib.host import limits, sockets
from squib.host.files import write_atomic
from squib.paths import Home

log = logging.getLogger("squib.server")

_IDLE_POLL_S = 1.0
_MAX_TCP_CONNECTIONS = 1000
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class TcpOptions:
    """A TCP address to serve. If ``token`` is empty, one is generated and kept in the state directory."""

    host: str
    port: int
    token: str = ""
    allowed_hosts: tuple[str, ...] = ()


async def serve(
    home: Home,
    *,
    idle_exit_s: float | None = None,
    tcp: TcpOptions | None = None,
    on_ready: Callable[[str | None, str | None], None],
    on_needed: Callable[[bool], None] = lambda needed: None,
) -> None:
    """Run the engine until SIGTERM or SIGINT, or until it has been idle for ``idle_exit_s``. VMs keep running.

    ``on_ready`` is called with the URL and the token of the TCP listener (or ``None``) once requests are served.
    ``on_needed`` is called with whether VMs need an engine: with ``True`` before a VMM is started, with ``False`` at
    most a second after the last VMM has ended, and at the end. Raises `EngineStartFailed`, `InvalidArgument` if the
    address cannot be bound.
    """
    async with contextlib.AsyncExitStack() as stack:
        tcp_socket = stack.enter_context(_bind(tcp)) if tcp else None
        engine = await stack.enter_async_context(open_engine(home, await find_drivers()))
        engine.on_needed = on_needed
        log.info("engine of %s: %s, %s", home.root, engine.drivers.default.name, engine.drivers.default.accelerator)
        unix_socket = sockets.listen(home.engine_socket)
        socket_inode = home.engine_socket.stat().st_ino
        stack.callback(_unlink, home.engine_socket, socket_inode)
        files = limits.raise_file_limit()
        servers = [Server(create_app(engine), unix_socket, files // 2)]
        url = token = None
        if tcp and tcp_socket:
            token = tcp.token or _own_token(home)
            hosts = {*_LOCAL_HOSTS, host_of(tcp.host), *map(str.lower, tcp.allowed_hosts)}
            tcp_app = create_app(engine, allowed_hosts=hosts, token=token)
            servers.append(Server(tcp_app, tcp_socket, min(_MAX_TCP_CONNECTIONS, files // 4)))
            url = f"http://{tcp.host}:{tcp_socket.getsockname()[1]}"
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with asyncio.TaskGroup() as tasks:
            for server in servers:
                tasks.create_task(server.answer())
            for server in servers:
                await server.answering.wait()
            on_ready(url, token)
            while (
                not stop.is_set() and not engine.home_replaced and (idle_exit_s is None or engine.idle_s < idle_exit_s)
            ):
                on_needed(engine.needed)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), _IDLE_POLL_S)
            on_needed(False)
            if engine.home_replaced:
                await kill_all(engine)
            log.info("engine exits: %s", "signal" if stop.is_set() else "idle")
            _unlink(home.engine_socket, socket_inode)  # clients now start another engine
            for server in servers:
                server.should_exit = True


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach ``host``."""
    return host == "localhost" or host.startswith("127.") or host in ("::1", "[::1]")


def _unlink(path: Path, inode: int) -> None:
    """Remove our own socket. Another engine may own the path by now."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if path.stat().st_ino == inode:
            path.unlink()


def _bind(tcp: TcpOptions) -> socket.socket:
    try:
        return socket.create_server((tcp.host, tcp.port))
    except OSError as error:
        raise InvalidArgument(
            f"cannot listen on {tcp.host}:{tcp.port}: {error.strerror or error}",
            hint="squib serve --listen 127.0.0.1:0",
        ) from error


def _own_token(home: Home) -> str:
    """Return the token of this state directory. It is generated once."""
    if home.token.exists() and (kept := home.token.read_text().strip()):
        return kept
    token = secrets.token_urlsafe(32)
    write_atomic(home.token, token.encode())
    return token
