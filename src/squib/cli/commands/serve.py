"""``squib serve``."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from squib.cli.app import command
from squib.cli.render import Output
from squib.errors import InvalidArgument

if TYPE_CHECKING:
    from squib.api.tcp import TcpOptions
    from squib.paths import Home

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
        str | None,
        typer.Option(
            metavar="TOKEN", envvar="SQUIB_TOKEN", help="Token for TCP clients. Default: generated once and stored."
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST", help="Host name that TCP clients may use, besides the one of --listen. Repeatable."
        ),
    ] = None,
) -> None:
    """Run the engine in the foreground.

    The engine runs until Ctrl-C or SIGTERM; VMs keep running without it. Other commands start an engine in the
    background if none is running, so serve is only needed for TCP. If an engine is running already, it listens on the
    address of --listen until this command ends. TCP is not encrypted: use TLS or a tunnel.
    """
    import asyncio

    from squib.api import server
    from squib.api.logfile import log_to_file
    from squib.paths import Home
    from squib.sdk.local import engine_answers

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
            if tcp and not tcp.is_loopback:
                output.note("this port is reachable from other machines and not encrypted: use TLS or a tunnel")

    if tcp and engine_answers(home):
        asyncio.run(_listen(home, tcp, on_ready))
        return
    log_to_file(home)
    asyncio.run(server.serve(home, tcp=tcp, on_ready=on_ready))


async def _listen(home: Home, tcp: TcpOptions, on_ready: Callable[[str, str], None]) -> None:
    """Have the running engine listen until SIGTERM or SIGINT.

    Raises `EngineUnavailable` when it has ended.
    """
    import asyncio

    from squib.sdk.client import EngineClient

    async def keep() -> None:
        async with EngineClient(home=home) as engine:
            listener = engine.listen(tcp.host, tcp.port, token=tcp.token, allowed_hosts=tcp.allowed_hosts)
            async with contextlib.aclosing(listener) as opened:
                said = False
                async for url, token in opened:
                    if not said:
                        on_ready(url, token)
                    said = True

    keeping = asyncio.create_task(keep())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, keeping.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await keeping


def _tcp_options(listen: str, token: str | None, allowed_hosts: tuple[str, ...]) -> TcpOptions:
    from squib.api.tcp import TcpOptions, check_token

    host, colon, port = listen.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > _MAX_PORT:
        raise InvalidArgument(f"--listen: invalid address {listen!r}", hint="squib serve --listen 127.0.0.1:8765")
    return TcpOptions(host, int(port), "" if token is None else check_token(token), allowed_hosts)
