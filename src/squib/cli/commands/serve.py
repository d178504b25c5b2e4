"""``squib serve``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from squib.cli.app import command
from squib.cli.render import Output
from squib.errors import InvalidArgument

if TYPE_CHECKING:
    from squib.api.server import TcpOptions

_MAX_PORT = 65535


@command(
    "serve",
    examples=[
        "squib serve",
        "squib serve --listen 127.0.0.1:8765",
        "squib serve --listen 0.0.0.0:8765 --allow-host vms.example.org",
        "SQUIB_URL=http://vms.example.org:8765 SQUIB_TOKEN=... squib ls",
    ],
)
def serve(
    output: Output,
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Also listen on TCP, and print the URL and the token. Port 0 selects a free port."
        ),
    ] = None,
    token: Annotated[
        str,
        typer.Option(
            metavar="TOKEN", envvar="SQUIB_TOKEN", help="Token for TCP clients. Default: generated once and stored."
        ),
    ] = "",
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST", help="Host name that TCP clients may use, besides the one of --listen. Repeatable."
        ),
    ] = None,
) -> None:
    """Run the engine in the foreground.

    The engine runs until Ctrl-C or SIGTERM; VMs keep running without it. Other commands start an engine in the
    background if none is running, so serve is only needed for TCP. TCP is not encrypted: use TLS or a tunnel.
    """
    import asyncio

    from squib.api import server
    from squib.api.logfile import log_to_file
    from squib.api.server import is_loopback
    from squib.paths import Home

    if listen is None and allow_host:
        raise InvalidArgument("--allow-host requires --listen", hint="squib serve --listen HOST:PORT --allow-host NAME")
    home = Home.from_environment()
    tcp = _tcp_options(listen, token, tuple(allow_host or ())) if listen is not None else None

    def on_ready(url: str | None, used_token: str | None) -> None:
        if output.json:
            output.line(json.dumps({"socket": str(home.engine_socket), "url": url, "token": used_token}))
            return
        output.line(f"the engine for {home.root} is ready")
        if url:
            output.line(f"export SQUIB_URL={url}\nexport SQUIB_TOKEN={used_token}")
            if tcp and not is_loopback(tcp.host):
                output.note("this port is reachable from other machines and not encrypted: use TLS or a tunnel")

    log_to_file(home)
    asyncio.run(server.serve(home, tcp=tcp, on_ready=on_ready))


def _tcp_options(listen: str, token: str, allowed_hosts: tuple[str, ...]) -> TcpOptions:
    from squib.api.server import TcpOptions

    host, colon, port = listen.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > _MAX_PORT:
        raise InvalidArgument(f"--listen: invalid address {listen!r}", hint="squib serve --listen 127.0.0.1:8765")
    return TcpOptions(host, int(port), token, allowed_hosts)
