"""The client of one guest's agent.

It keeps one HTTP/2 connection and opens a new one after it has broken.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from squib.errors import AgentProtocolError, AgentTimeout, AgentVersionMismatch, SquibError
from squib.guest.budget import LoopBudget
from squib.guest.channel import PROTOCOL_VERSION, Connect, open_channel
from squib.guest.files import AgentFiles
from squib.guest.http2 import STREAM_WINDOW_BYTES, Body, Http2Connection
from squib.guest.output import OutputChecker
from squib.guest.processes import parse_process, parse_processes
from squib.guest.replies import agent_error, decode, text_field
from squib.guest.response import Response
from squib.models import Account, ExecRequest, ProcessInfo, PtySize
from squib.protocol.guestfiles import encode_query, parse_account

AGENT_BINARY = Path(__file__).parent / "bin" / "squib-agent"
"""The agent, built when squib was installed (``hatch_build.py``)."""

_RECONNECT_TIMEOUT_S = 5.0
_REPLY_TIMEOUT_S = 15.0
"""For requests that an agent completes at once. The guest may be slow, but a caller must not wait for ever."""
_FREEZE_TIMEOUT_S = 60.0
"""A guest may have much to write to its disk."""
_ENTROPY_BYTES = 64
_MAX_REPLY_BYTES = 64 * 1024
"""JSON is decoded in one go: a guest can have 1 MiB take 100 ms, in which no other VM is served."""
_MAX_LIST_BYTES = 1 << 20


@dataclass(frozen=True)
class Hello:
    """How the agent describes itself and its guest."""

    agent_version: str
    boot_id: str
    kernel: str


@dataclass(frozen=True)
class Identity:
    """Who a guest is."""

    vm_id: str
    hostname: str
    machine_id: str


class AgentClient:
    """Requests to the agent that ``connect`` reaches.

    All requests share one connection.
    """

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._connection: Http2Connection | None = None
        self._connecting = asyncio.Lock()
        self._budget = LoopBudget()
        self.has_answered = False
        """Whether `connect` has ever succeeded."""
        self.files = AgentFiles(self._send, self._json)
        """The files of the guest."""

    async def connect(self, *, timeout_s: float, retry_s: float = 0.25) -> Hello:
        """Wait at most ``timeout_s`` until the agent responds.

        ``retry_s`` is as in `open_channel`.

        Raises `AgentUnreachable`, `AgentVersionMismatch`.
        """
        await self.shake_hands(timeout_s=timeout_s, retry_s=retry_s)
        reply = await self._json("GET", "/v1/hello")
        version = reply.get("protocol")
        if type(version) is not int:
            raise AgentProtocolError("the guest agent does not say which protocol it speaks")
        if version != PROTOCOL_VERSION:
            raise AgentVersionMismatch(
                f"the guest agent speaks protocol {version}, this squib speaks {PROTOCOL_VERSION}"
            )
        return Hello(*(text_field(reply, name) for name in ("agent_version", "boot_id", "kernel")))

    async def shake_hands(self, *, timeout_s: float, retry_s: float = 0.25) -> None:
        """Wait as `connect` does, but ask for nothing: a guest that is new here needs 0.1 s for a first request."""
        await self._open_connection(timeout_s, retry_s)
        self.has_answered = True

    async def close(self) -> None:
        """Close the connection.

        Foreground commands in the guest end with it. Idempotent.
        """
        if self._connection:
            await self._connection.close()
            self._connection = None

    async def end_session(self, *, timeout_s: float) -> None:
        """End the session, and return when the agent waits for the next handshake.

        The clones of a guest that is saved in this state answer at once. In a session, the host must first flush it
        (``protocol/agent.md`` §2).

        Raises `AgentUnreachable`.
        """
        await self.close()
        connection, _ = await open_channel(self._connect, self._budget, timeout_s=timeout_s, go=False)
        connection.close()

    async def setup(self, identity: Identity, *, env: dict[str, str], same_boot: bool = False) -> None:
        """Send a guest that was booted or restored its identity, the host's time, entropy, and a new boot ID.

        With ``same_boot`` the guest keeps the identity that it was saved with.
        """
        who = {} if same_boot else asdict(identity) | {"boot_id": str(uuid.uuid4())}
        await self._json("POST", "/v1/setup", {"env": env} | who)
        # Last, and in a request that is quick: an emulator needs 0.2 s for the first one, and the time would be wrong.
        await self._json("POST", "/v1/setup", {"restored": True} | _entropy_and_time())

    async def freeze(self, *, sync: bool) -> None:
        """Stop all commands until `thaw` or `setup`; requests to the guest wait.

        With ``sync``, what they have written is on the guest's disk.

        Raises `GuestFailed` if they cannot be stopped.
        """
        await self._json("POST", "/v1/freeze", {"sync": sync}, timeout_s=_FREEZE_TIMEOUT_S)

    async def thaw(self) -> None:
        """Set the guest's clock, and let its commands go on with fresh entropy. Idempotent."""
        await self._json("POST", "/v1/setup", _entropy_and_time())

    async def set_env(self, env: dict[str, str]) -> None:
        """Replace the environment that every command starts with."""
        await self._json("POST", "/v1/setup", {"env": env})

    async def account(self, user: str | None) -> Account:
        """Describe a user, by default root. Raises `NoSuchUser`."""
        return parse_account(await self._json("GET", "/v1/account" + encode_query(("user", user))))

    async def exec(self, request: ExecRequest) -> Response:
        """Start a command; the response streams its frames.

        The frames (`squib.protocol.frames`) are checked by `OutputChecker`. Closing the response early kills the
        command, except a background command.

        Raises an `ExecError` if the command cannot be started.
        """
        spec: dict[str, Any] = request.model_dump(exclude_defaults=True, exclude={"timeout_s"})
        if request.timeout_s is not None:
            spec["timeout_ms"] = max(1, round(request.timeout_s * 1000))
        if request.pty is not None:
            spec["pty"] = request.pty.model_dump()
        response = await self._send("POST", "/v1/exec", _encode(spec), content_type="application/json")
        return response.check_with(OutputChecker())

    async def processes(self) -> list[ProcessInfo]:
        """List processes, oldest first.

        The list contains running processes, and ended background processes that the agent still keeps.
        """
        reply = await self._json("GET", "/v1/processes", max_bytes=_MAX_LIST_BYTES)
        return await parse_processes(reply)

    async def process(self, process_id: str) -> ProcessInfo:
        """Return one process. Raises `NoSuchProcess`."""
        return parse_process(await self._json("GET", f"/v1/processes/{process_id}"))

    async def output(self, process_id: str, *, stdout: int, stderr: int, none: bool) -> Response:
        """Attach to a process; the response streams frames as in `exec`.

        Output starts at the offsets ``stdout`` and ``stderr``. With ``none``, only the end of the process is streamed.
        Closing the response does not affect the process.

        Raises `NoSuchProcess`.
        """
        query = f"stdout={stdout}&stderr={stderr}" + ("&none=1" if none else "")
        response = await self._send("GET", f"/v1/processes/{process_id}/output?{query}", b"", content_type="")
        return response.check_with(OutputChecker())

    async def resize(self, process_id: str, size: PtySize) -> None:
        """Set the size of a process's terminal.

        Raises `NoTerminal`, `NoSuchProcess`.
        """
        await self._json("POST", f"/v1/processes/{process_id}/resize", size.model_dump())

    async def kill(self, process_id: str) -> None:
        """Kill a process and its descendants, and forget the process.

        Returns when they have ended.

        Raises `NoSuchProcess`.
        """
        await self._json("DELETE", f"/v1/processes/{process_id}")

    async def write_stdin(self, process_id: str, body: Body, *, close: bool) -> int:
        """Write ``body`` to a process's standard input.

        With ``close``, closes the input after that. Returns how many bytes were written.
        """
        query = "?close=1" if close else ""
        path = f"/v1/processes/{process_id}/stdin{query}"
        content_type = "application/octet-stream"
        async with await self._send("POST", path, body, content_type=content_type, may_stall=True) as response:
            written = decode(await response.read(max_bytes=_MAX_REPLY_BYTES)).get("written")
            return written if isinstance(written, int) else 0

    async def signal(self, process_id: str, signal: int) -> None:
        """Send a signal to a process group."""
        await self._json("POST", f"/v1/processes/{process_id}/signal", {"signal": signal})

    async def poweroff(self, *, grace_s: float) -> None:
        """Ask the guest to sync its disk and begin to power off.

        Its processes have ``grace_s`` to end.
        """
        await self._json("POST", "/v1/poweroff", {"grace_ms": round(grace_s * 1000)})

    async def _open_connection(self, timeout_s: float, retry_s: float = 0.25) -> Http2Connection:
        async with self._connecting:
            if self._connection is None or self._connection.closed:
                channel = await open_channel(self._connect, self._budget, timeout_s=timeout_s, retry_s=retry_s)
                self._connection = await Http2Connection.open(*channel, self._budget)
            return self._connection

    async def _send(
        self,
        method: str,
        path: str,
        body: Body,
        *,
        content_type: str,
        window_bytes: int = STREAM_WINDOW_BYTES,
        may_stall: bool = False,
    ) -> Response:
        connection = await self._open_connection(_RECONNECT_TIMEOUT_S)
        response = await connection.request(
            method, path, body, content_type=content_type, window_bytes=window_bytes, may_stall=may_stall
        )
        if response.status >= 400:
            async with response:
                raise agent_error(response.status, await response.read(max_bytes=_MAX_REPLY_BYTES))
        return response

    async def _json(
        self,
        method: str,
        path: str,
        value: dict[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
        max_bytes: int = _MAX_REPLY_BYTES,
    ) -> dict[str, Any]:
        body = b"" if value is None else _encode(value)
        timeout_s = timeout_s or _REPLY_TIMEOUT_S
        try:
            async with (
                asyncio.timeout(timeout_s),
                await self._send(method, path, body, content_type="application/json") as response,
            ):
                reply = await response.read(max_bytes=max_bytes)
        except SquibError:
            raise
        except TimeoutError:
            raise AgentTimeout(f"the guest did not respond within {timeout_s:g} s") from None
        began = self._budget.clock()
        try:
            return decode(reply) if reply else {}
        finally:
            self._budget.spend(self._budget.clock() - began)


def _entropy_and_time() -> dict[str, Any]:
    entropy = base64.b64encode(os.urandom(_ENTROPY_BYTES)).decode()
    return {"time_unix_ms": time.time_ns() // 1_000_000, "entropy": entropy}


def _encode(value: dict[str, Any]) -> bytes:
    """Encode as JSON in ASCII.

    Bytes that are not UTF-8 travel as lone surrogates, which `json` escapes.
    """
    return json.dumps(value).encode("ascii")
