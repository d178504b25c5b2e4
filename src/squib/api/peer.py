"""The process at the other end of a connection on a unix socket, and its end.

A forked child inherits its parent's connections, and keeps them open when the parent is killed. So the end of a
connection does not show the end of a client.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
from asyncio.trsock import TransportSocket
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

T = TypeVar("T")

_SO_PEERPIDFD = 77  # linux/socket.h; Linux 6.5
_UCRED = struct.Struct("3i")


async def while_client_runs(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Run ``work``.

    If the process that opened the connection ends first, cancel it and raise `ClientDisconnect`.

    Over TCP, and for a process that this host does not show, only the work counts.
    """
    task = asyncio.ensure_future(work)
    pidfd = _open_peer(request)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    try:
        if pidfd is None:
            return await task
        loop.add_reader(pidfd, ended.set)
        waiting = asyncio.ensure_future(ended.wait())
        try:
            await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            loop.remove_reader(pidfd)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        if pidfd is not None:
            os.close(pidfd)
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


def is_local(request: Request) -> bool:
    """Return whether a request came over a unix socket, so from this host."""
    connection = request.scope.get("state", {}).get("connection")
    return isinstance(connection, TransportSocket) and connection.family == socket.AF_UNIX


def _open_peer(request: Request) -> int | None:
    """Return a pidfd of the client's process, ``None`` if it is not known."""
    connection = request.scope.get("state", {}).get("connection")
    if not isinstance(connection, TransportSocket) or connection.family != socket.AF_UNIX:
        return None
    with suppress(OSError):
        return int.from_bytes(connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4), sys.byteorder)
    with suppress(OSError):  # the process has ended, or is in another PID namespace
        pid, _, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        return os.pidfd_open(pid)
    return None
