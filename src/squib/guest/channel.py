"""The handshake that precedes HTTP/2 on the byte stream to a guest.

It is specified in ``protocol/agent.md`` §2.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import socket
from collections.abc import Awaitable, Callable

from squib.errors import AgentLost, AgentTimeout, AgentVersionMismatch, SquibError
from squib.guest.budget import LoopBudget
from squib.undo import Undo

PROTOCOL_VERSION = 1
MAX_FRAME_BYTES = 262_144
_FLUSH = b"\xff" * (MAX_FRAME_BYTES + 9)
_MAX_LINE_BYTES = 128
_READ_BYTES = 4096
_LAST_RETRY_S = 2.0
_CLOSED_RETRIES, _CLOSED_PAUSE_S = 5, 0.02
Connect = Callable[[], Awaitable[socket.socket]]
"""Connects to a guest agent: returns a connected, non-blocking stream socket. Raises `OSError` or `AgentLost`."""

_OK = re.compile(rb"SQUIB-OK (\d{1,9}) ([0-9a-f]{32})\Z")


async def open_channel(
    connect: Connect, budget: LoopBudget, *, timeout_s: float, retry_s: float = 0.25, go: bool = True
) -> tuple[socket.socket, bytes]:
    """Connect to the guest agent, shake hands, and return the socket.

    Without ``go`` the handshake is left open: the agent then waits for another one, as after a boot.

    Returns the non-blocking socket and the HTTP/2 bytes received so far. If the guest does not answer within
    ``retry_s``, flushes the HTTP/2 connection that the guest may still be in and sends a new nonce; then tries again on
    a new connection, until ``timeout_s`` has passed. (A booting guest takes long to answer and has nothing to flush.)
    If the guest closes the connection, tries again a few times: under Firecracker, a guest that goes on from a saved
    memory ends all its connections, and may have accepted this one before it does.

    Raises `AgentLost`, `AgentTimeout`, `AgentVersionMismatch`.
    """
    tries = 1 + _CLOSED_RETRIES
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                connection = await _connect(connect)
                try:
                    with Undo(connection.close):
                        received = await _shake_hands(connection, budget, retry_s, go=go)
                except ConnectionError as error:
                    tries -= 1
                    if not tries:
                        raise AgentLost("the guest closed the connection during the handshake") from error
                    await asyncio.sleep(_CLOSED_PAUSE_S)
                    continue
                if received is not None:
                    return connection, received
                connection.close()
                retry_s = min(retry_s * 2, _LAST_RETRY_S)
    except SquibError:
        raise
    except TimeoutError:
        raise AgentTimeout(f"the guest agent did not respond within {timeout_s:g} s") from None


async def _connect(connect: Connect) -> socket.socket:
    try:
        return await connect()
    except OSError as error:
        raise AgentLost(f"cannot connect to the guest agent: {error.strerror or error}") from error


async def _shake_hands(connection: socket.socket, budget: LoopBudget, retry_s: float, *, go: bool) -> bytes | None:
    """Try twice, the second time after a flush.

    Return ``None`` if a new connection is needed.
    """
    loop = asyncio.get_running_loop()
    for flush in (b"", _FLUSH):
        nonce = secrets.token_hex(16).encode()
        try:
            async with asyncio.timeout(retry_s):
                await loop.sock_sendall(connection, flush + b"SQUIB-SYNC %d %s\n" % (PROTOCOL_VERSION, nonce))
                received = await _read_ok(connection, budget, nonce)
        except TimeoutError:
            continue
        if go:
            await loop.sock_sendall(connection, b"SQUIB-GO %d %s\n" % (PROTOCOL_VERSION, nonce))
        return received
    return None


async def _read_ok(connection: socket.socket, budget: LoopBudget, nonce: bytes) -> bytes:
    """Return what follows the OK with ``nonce``; discard what precedes it."""
    loop = asyncio.get_running_loop()
    rest = b""
    while True:
        received = await loop.sock_recv(connection, _READ_BYTES)
        if not received:
            raise ConnectionResetError("the guest closed the connection")
        began = budget.clock()
        *lines, rest = (rest + received).split(b"\n")
        for number, line in enumerate(lines, 1):
            found = _OK.search(line)
            if found and found[2] == nonce:
                _check_version(int(found[1]))
                return b"\n".join((*lines[number:], rest))
        rest = rest[-_MAX_LINE_BYTES:]
        budget.spend(budget.clock() - began)
        await asyncio.sleep(budget.throttle())  # always: `sock_recv` does not wait while there are bytes


def _check_version(version: int) -> None:
    if version != PROTOCOL_VERSION:
        raise AgentVersionMismatch(
            f"the guest's agent speaks protocol {version}, this squib speaks {PROTOCOL_VERSION}",
            hint="stop and start the VM: it then boots with this squib's agent",
        )
