"""The handshake that makes one HTTP/2 session out of the byte stream to a guest (``protocol/agent.md`` §2)."""

from __future__ import annotations

import asyncio
import re
import secrets
from pathlib import Path

from squib.errors import AgentUnreachable, AgentVersionMismatch
from squib.host import sockets

PROTOCOL_VERSION = 1
MAX_FRAME_BYTES = 262_144
_FLUSH = b"\xff" * (MAX_FRAME_BYTES + 9)
_MAX_LINE_BYTES = 128
_LAST_RETRY_S = 2.0
_OK = re.compile(rb"SQUIB-OK (\d{1,9}) ([0-9a-f]{32})\n\Z")


async def open_channel(
    socket_path: Path, *, timeout_s: float, retry_s: float = 0.25
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the guest's port and shake hands: what follows on the stream is HTTP/2.

    After ``retry_s`` of silence it ends whatever session the guest may still be in and tries again with a new nonce,
    and then on a new connection, until ``timeout_s`` has passed. (A guest that boots is silent for long, and has no
    session to end.) Raises `AgentUnreachable`, `AgentVersionMismatch`.
    """
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                streams = await _connect(socket_path)
                try:
                    if await _shake_hands(*streams, retry_s):
                        return streams
                except BaseException:
                    streams[1].transport.abort()
                    raise
                streams[1].transport.abort()
                retry_s = min(retry_s * 2, _LAST_RETRY_S)
    except TimeoutError:
        raise AgentUnreachable(f"the guest did not answer on its port within {timeout_s:g} s") from None
    except (ConnectionError, asyncio.IncompleteReadError) as error:
        raise AgentUnreachable("the guest's port was closed during the handshake") from error


async def _connect(socket_path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        connection = sockets.connect(socket_path)
    except OSError as error:
        raise AgentUnreachable(f"the guest's port {socket_path} cannot be opened: {error.strerror}") from error
    return await asyncio.open_unix_connection(sock=connection, limit=1 << 20)


async def _shake_hands(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, retry_s: float) -> bool:
    """Two attempts, the second after a flush; whether the guest has answered one. A third needs a new connection."""
    for flush in (b"", _FLUSH):
        nonce = secrets.token_hex(16).encode()
        writer.write(flush + b"SQUIB-SYNC %d %s\n" % (PROTOCOL_VERSION, nonce))
        try:
            async with asyncio.timeout(retry_s):
                await writer.drain()
                await _read_ok(reader, nonce)
        except TimeoutError:
            continue
        writer.write(b"SQUIB-GO %d %s\n" % (PROTOCOL_VERSION, nonce))
        return True
    return False


async def _read_ok(reader: asyncio.StreamReader, nonce: bytes) -> None:
    """Discard everything up to the OK that answers ``nonce``."""
    line = b""
    while True:
        line += await _read_until_newline(reader)
        found = _OK.search(line)
        if found and found[2] == nonce:
            if int(found[1]) != PROTOCOL_VERSION:
                raise AgentVersionMismatch(
                    f"the guest's agent speaks protocol {int(found[1])}, this squib speaks {PROTOCOL_VERSION}",
                    hint="stop and start the VM: it then boots with this squib's agent",
                )
            return
        line = b"" if line.endswith(b"\n") else line[-_MAX_LINE_BYTES:]


async def _read_until_newline(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\n")
    except asyncio.LimitOverrunError as overrun:
        return (await reader.readexactly(overrun.consumed))[-_MAX_LINE_BYTES:]
