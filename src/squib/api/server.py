"""The engine process, which serves the API on a unix socket and on TCP.

The unix socket is in the state directory. TCP is optional.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable
from pathlib import Path

from squib.api.app import create_app
from squib.api.connections import Server
from squib.api.tcp import TcpOptions, bind, listening
from squib.core.lifecycle.release import kill_all
from squib.core.startup import open_engine
from squib.drivers.registry import find_drivers
from squib.host import limits, sockets
from squib.paths import Home

log = logging.getLogger("squib.server")

_IDLE_POLL_S = 1.0


async def serve(
    home: Home,
    *,
    idle_exit_s: float | None = None,
    tcp: TcpOptions | None = None,
    on_ready: Callable[[str | None, str | None], None],
    on_needed: Callable[[bool], None] = lambda needed: None,
) -> None:
    """Run the engine until SIGTERM or SIGINT, or ``idle_exit_s`` idle seconds.

    By default it has no idle limit. It also ends if the state directory is removed, and then kills the VMs. Otherwise
    VMs keep running.

    ``on_ready`` is called with the URL and the token of the TCP listener (or ``None``) once requests are served.
    ``on_needed`` is called with whether VMs need an engine: with ``True`` before a VMM is started, with ``False`` at
    most a second after the last VMM has ended, and at the end.

    Raises `EngineStartFailed`, and `InvalidArgument` if the address cannot be bound.
    """
    async with contextlib.AsyncExitStack() as stack:
        tcp_socket = stack.enter_context(bind(tcp)) if tcp else None
        engine = await stack.enter_async_context(open_engine(home, await find_drivers(home)))
        engine.on_needed = on_needed
        log.info("engine of %s: %s, %s", home.root, engine.drivers.default.name, engine.drivers.default.accelerator)
        unix_socket = sockets.listen(home.engine_socket)
        socket_inode = home.engine_socket.stat().st_ino
        stack.callback(_unlink, home.engine_socket, socket_inode)
        app = create_app(engine, listening=lambda body: listening(engine, TcpOptions(**dict(body))))
        server = Server(app, unix_socket, limits.raise_file_limit() // 2)
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with asyncio.TaskGroup() as tasks, contextlib.AsyncExitStack() as listeners:
            tasks.create_task(server.answer())
            await server.answering.wait()
            if tcp:
                on_ready(*await listeners.enter_async_context(listening(engine, tcp, tcp_socket)))
            else:
                on_ready(None, None)
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
            server.should_exit = True


def _unlink(path: Path, inode: int) -> None:
    """Remove our own socket. Another engine may own the path by now."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if path.stat().st_ino == inode:
            path.unlink()
