"""Serving the API on a TCP address, with a token."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import secrets
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass

from squib.api.app import create_app
from squib.api.connections import MAX_CONNECTIONS, Server
from squib.core.engine import Engine
from squib.errors import InvalidArgument
from squib.host import limits
from squib.host.files import write_atomic
from squib.paths import Home

_LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
_HOST = re.compile(r"\[[0-9a-f:.]+(%\w+)?\]|[a-z0-9_]([a-z0-9_.-]*[a-z0-9_.])?", re.IGNORECASE)
_TOKEN = re.compile(r"[!-~]{1,1000}")
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))
"""A client whose host is lost has disconnected two minutes later."""


@dataclass(frozen=True)
class TcpOptions:
    """A TCP address to serve.

    ``host`` may be an IPv6 address, with or without brackets. If ``token`` is empty, one is generated and kept in the
    state directory.

    Raises `InvalidArgument`.
    """

    host: str
    port: int
    token: str = ""
    allowed_hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _HOST.fullmatch(self.name):
            raise InvalidArgument(f"--listen: invalid host {self.host!r}", hint="squib serve --listen 127.0.0.1:8765")
        for name in self.allowed_hosts:
            if not _HOST.fullmatch(name):
                raise InvalidArgument(
                    f"--allow-host: invalid host name {name!r}: give it without a scheme and a port",
                    hint="squib serve --listen 0.0.0.0:8765 --allow-host vms.example.org",
                )
        if self.token:
            check_token(self.token)

    @property
    def address(self) -> str:
        """The host without brackets."""
        return self.host.removeprefix("[").removesuffix("]")

    @property
    def name(self) -> str:
        """The host as in a URL: an IPv6 address is in brackets."""
        return f"[{self.address}]" if ":" in self.address else self.address

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(self.address).is_loopback
        return self.address == "localhost"


def check_token(token: str) -> str:
    """Check a token: what a header can carry, without spaces.

    Raises `InvalidArgument`.
    """
    if not _TOKEN.fullmatch(token):
        raise InvalidArgument(
            "--token: a token has 1 to 1000 printable ASCII characters and no spaces",
            hint="leave it out, and squib generates one",
        )
    return token


def bind(tcp: TcpOptions) -> socket.socket:
    """Open the listening socket. Raises `InvalidArgument`."""
    try:
        family, _, _, _, address = socket.getaddrinfo(tcp.address, tcp.port, type=socket.SOCK_STREAM)[0]
        dual = tcp.address == "::" and socket.has_dualstack_ipv6()
        listener = socket.create_server(address, family=family, dualstack_ipv6=dual)
    except OSError as error:
        raise InvalidArgument(
            f"cannot listen on {tcp.name}:{tcp.port}: {error.strerror or error}",
            hint="squib serve --listen 127.0.0.1:0",
        ) from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        listener.setsockopt(socket.IPPROTO_TCP, option, value)
    return listener


@contextlib.asynccontextmanager
async def listening(
    engine: Engine, tcp: TcpOptions, listener: socket.socket | None = None
) -> AsyncIterator[tuple[str, str]]:
    """Serve the API on TCP during the block, which gets the URL and the token.

    Raises `InvalidArgument` if the address cannot be bound.
    """
    listener = listener or bind(tcp)
    token = tcp.token or _own_token(engine.home)
    hosts = {*_LOCAL_HOSTS, tcp.name.lower(), *map(str.lower, tcp.allowed_hosts)}
    app = create_app(engine, allowed_hosts=hosts, token=token)
    url = f"http://{tcp.name}:{listener.getsockname()[1]}"
    server = Server(app, listener, min(MAX_CONNECTIONS, limits.raise_file_limit() // 4))
    answering = asyncio.create_task(server.answer(), name=f"listener {url}")
    try:
        await server.answering.wait()
        yield url, token
    finally:
        server.should_exit = True
        await asyncio.wait({answering})


def _own_token(home: Home) -> str:
    """Return the token of this state directory. It is generated once."""
    if home.token.exists() and _TOKEN.fullmatch(kept := home.token.read_text().strip()):
        return kept
    token = secrets.token_urlsafe(32)
    write_atomic(home.token, token.encode())
    return token
