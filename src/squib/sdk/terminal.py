"""Terminals in a VM over a WebSocket, used by ``squib connect``."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from squib.errors import AgentUnreachable, EngineUnavailable
from squib.models import ExecRequest, PtySize
from squib.models.base import check_name
from squib.protocol.errors import from_wire
from squib.protocol.frames import CommandEnd
from squib.sdk.client import EngineClient
from squib.sdk.config import check_ref
from squib.sdk.httpclient import PAUSES_S, REMOTE_HINT
from squib.sdk.liveness import SILENCE_S
from squib.sdk.local import ensure_engine
from squib.sdk.responses import error_of
from squib.sdk.streams import connect as connect_to

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

_OPEN_TIMEOUT_S = 10.0
_CLOSE_TIMEOUT_S = 1.0
_PING_S = 20.0
_PING_TIMEOUT_S = 60.0
_PIECE_BYTES = 1 << 18
"""The size of an input message, well below the engine's message limit."""


@dataclass(frozen=True)
class Attach:
    """A request to attach to the existing terminal of the process ``id``.

    The output starts at ``offset``, in bytes, or at the oldest output that is kept. With ``size``, the terminal is
    resized, and a full-screen program redraws itself.
    """

    id: str
    offset: int = 0
    size: PtySize | None = None


class Terminal:
    """A terminal in a VM; see `open_terminal`.

    Only one task may read `output`. Other tasks may write at the same time.
    """

    def __init__(self, engine: EngineClient, socket: ClientConnection, process_id: str, pid: int) -> None:
        self._engine = engine
        self._socket = socket
        self._where = engine.where
        self._end: CommandEnd | None = None
        self._offset = 0
        self._acknowledges = False
        self._unreceived = bytearray()
        self.id = process_id
        """The process ID in the VM, such as ``p3``."""
        self.pid = pid
        """The PID of the terminal's first process, in the guest."""

    @property
    def offset(self) -> int:
        """The position of `output` in bytes.

        `Attach` with this offset continues without gaps or repeats.
        """
        return self._offset

    @property
    def unreceived(self) -> bytes:
        """The input that the engine is not known to have received.

        After a lost connection, send it again. The engine acknowledges input before it writes it to the guest, so none
        is written twice.
        """
        return bytes(self._unreceived)

    @property
    def end(self) -> CommandEnd:
        """The exit status.

        Raises `AgentUnreachable` if `output` was not read to its end.
        """
        if self._end is None:
            raise AgentUnreachable("the terminal's output ended before the command exited")
        return self._end

    async def output(self) -> AsyncIterator[bytes]:
        """Yield the terminal's output until its command exits.

        Then read `end`.

        Raises `EngineUnavailable` if the connection is lost, `AgentUnreachable` if the VM stops responding, and other
        errors that the engine reports. After a lost connection the command keeps running; `Attach` to it again.
        """
        while self._end is None:
            message = await _receive(self._engine, self._socket)
            if isinstance(message, bytes):
                self._offset += len(message)
                if message:
                    yield message
                continue
            match message.get("type"):
                case "offset":
                    self._offset = _number(message, "offset", self._where)
                case "received":
                    del self._unreceived[: _number(message, "bytes", self._where)]
                case "exit":
                    self._end = _end_of(message, self._where)

    async def send(self, data: bytes) -> None:
        """Send ``data`` as terminal input.

        Blocks while the terminal's buffer is full. If the command has exited, do nothing.

        Raises `EngineUnavailable` if the connection is lost.
        """
        self._unreceived += data
        for start in range(0, len(data), _PIECE_BYTES):
            await self._send(data[start : start + _PIECE_BYTES])
        if not self._acknowledges:
            self._unreceived.clear()

    async def resize(self, rows: int, cols: int) -> None:
        """Resize the terminal, in characters. Raises the errors of `send`."""
        await self._send(json.dumps({"type": "resize", "rows": rows, "cols": cols}))

    async def signal(self, number: int) -> None:
        """Send a signal to the terminal's foreground process group.

        Raises the errors of `send`.
        """
        await self._send(json.dumps({"type": "signal", "signal": number}))

    async def _send(self, message: bytes | str) -> None:
        from websockets.exceptions import ConnectionClosed, ConnectionClosedError

        try:
            await self._socket.send(message)
            if self._socket.transport.is_closing():  # asyncio drops what it can no longer write
                raise ConnectionClosedError(None, None)
        except ConnectionClosed as error:
            if self._end is None:
                raise _lost(self._where, error) from error


@asynccontextmanager
async def open_terminal(
    engine: EngineClient, ref: str, what: ExecRequest | Attach | None = None
) -> AsyncIterator[Terminal]:
    """Open a terminal in the VM ``ref``, or attach to an existing one.

    ``what`` is the command to start or the terminal to attach to; by default, root's login shell is started. The
    ``pty`` of a command is the terminal's size, by default 24 rows by 80 columns. When the block ends, the terminal is
    detached and the command keeps running. A local engine is started if it is not running.

    Raises `NoShell` or another `ExecError` if the command cannot start, `NoSuchProcess`, `NoTerminal`, `WrongState`,
    `NotFound`, `InvalidArgument`, `EngineUnavailable`, and `EngineStartFailed`.
    """
    socket = await _connect(engine, f"/v1/vms/{check_ref(ref)}/pty?acknowledge=true")
    try:
        terminal = await _begin(engine, socket, _first_message(what or ExecRequest(login=True)))
        if isinstance(what, Attach):
            terminal._offset = what.offset
        yield terminal
    finally:
        await socket.close()


async def _begin(engine: EngineClient, socket: ClientConnection, first: dict[str, Any]) -> Terminal:
    from websockets.exceptions import ConnectionClosed

    where = engine.where
    try:
        await socket.send(json.dumps(first))
    except ConnectionClosed as error:
        raise _lost(where, error) from error
    while isinstance(answer := await _receive(engine, socket), dict):
        if answer.get("type") in ("started", "attached"):
            terminal = Terminal(engine, socket, _process_id(answer, where), _number(answer, "pid", where))
            terminal._acknowledges = answer.get("acknowledges") is True  # older engines do not
            return terminal
    raise _not_understood(where)  # output before the command has started


def _first_message(what: ExecRequest | Attach) -> dict[str, Any]:
    if isinstance(what, Attach):
        size = what.size.model_dump() if what.size else {}
        return {"type": "attach", "id": check_ref(what.id), "offset": what.offset} | size
    fields = what.model_dump(exclude_defaults=True, exclude={"stdin", "background", "pty"})
    return {"type": "start"} | fields | (what.pty or PtySize()).model_dump()


async def _receive(engine: EngineClient, socket: ClientConnection) -> bytes | dict[str, Any]:
    """Receive the next message: output, or a control message.

    Raises the error that an error message holds, and `EngineUnavailable` if the engine no longer responds.
    """
    data, where = await _next_message(engine, socket), engine.where
    if isinstance(data, bytes):
        return data
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise _not_understood(where)
    if message.get("type") == "error" and isinstance(reported := message.get("error"), dict):
        raise from_wire(reported)
    return message


async def _next_message(engine: EngineClient, socket: ClientConnection) -> str | bytes:
    from websockets.exceptions import ConnectionClosed

    while True:
        try:
            async with asyncio.timeout(SILENCE_S):
                return await socket.recv()
        except ConnectionClosed as error:
            raise _lost(engine.where, error) from error
        except TimeoutError:
            if not await engine.responds():
                raise engine.not_responding("the terminal") from None


async def _connect(engine: EngineClient, path: str) -> ClientConnection:
    from websockets.asyncio.client import connect
    from websockets.exceptions import InvalidHandshake, InvalidStatus

    for last, pause_s in [(False, pause_s) for pause_s in PAUSES_S] + [(True, 0.0)]:
        try:
            if engine.home:
                # Connect here, so that a missing engine raises OSError.
                sock = await connect_to(engine.home.engine_socket, _OPEN_TIMEOUT_S)
                connecting = connect(
                    f"ws://squib{path}",
                    sock=sock,
                    compression=None,
                    ping_interval=None,
                    open_timeout=_OPEN_TIMEOUT_S,
                    close_timeout=_CLOSE_TIMEOUT_S,
                )
            else:
                connecting = connect(
                    "ws" + (engine.url or "").removeprefix("http").rstrip("/") + path,
                    additional_headers=engine.headers,
                    compression=None,
                    proxy=None,
                    ping_interval=_PING_S,
                    ping_timeout=_PING_TIMEOUT_S,
                    open_timeout=_OPEN_TIMEOUT_S,
                    close_timeout=_CLOSE_TIMEOUT_S,
                )
            return await connecting
        except InvalidStatus as error:
            raise error_of(
                error.response.status_code, bytes(error.response.body or b""), error.response.headers
            ) from None
        except TimeoutError as error:
            raise engine.not_responding("the opening of a terminal") from error
        except (OSError, InvalidHandshake, ssl.SSLError) as error:
            if engine.home is None or last:
                raise EngineUnavailable(
                    f"cannot open a terminal at the engine {engine.where}: {error or type(error).__name__}",
                    hint=REMOTE_HINT if engine.url else "squib version shows the engine",
                ) from error
            await asyncio.sleep(pause_s)
            await ensure_engine(engine.home)
    raise AssertionError("not reached")


def _process_id(message: dict[str, Any], where: str) -> str:
    try:
        return check_name(str(message.get("id", "")))
    except ValueError:
        raise _not_understood(where) from None


def _number(message: dict[str, Any], name: str, where: str) -> int:
    value = message.get(name)
    if type(value) is not int or value < 0:
        raise _not_understood(where)
    return value


def _end_of(message: dict[str, Any], where: str) -> CommandEnd:
    signal, duration_s = message.get("signal"), message.get("duration_s")
    if not (signal is None or type(signal) is int) or not isinstance(duration_s, int | float):
        raise _not_understood(where)
    return CommandEnd(
        _number(message, "exit_code", where),
        signal,
        message.get("timed_out") is True,
        duration_s,
        message.get("oom_killed") is True,
    )


def _lost(where: str, error: Exception) -> EngineUnavailable:
    return EngineUnavailable(
        f"the connection to the engine {where} broke: {error}",
        hint="the command is still running: list it with squib ps VM, reattach with squib attach VM",
    )


def _not_understood(where: str) -> EngineUnavailable:
    return EngineUnavailable(
        f"invalid message from {where}: the engine has another version, or the server is not a squib engine",
        hint="squib version shows both versions; check SQUIB_URL",
    )
