"""The client of the agent in one guest: keeps the session, makes a new one when it breaks."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from squib import errors
from squib.errors import AgentUnreachable, AgentVersionMismatch, SquibError
from squib.guest.channel import PROTOCOL_VERSION, Connect, open_channel
from squib.guest.files import AgentFiles
from squib.guest.http2 import STREAM_WINDOW_BYTES, Body, Http2Connection, Response
from squib.guest.sessions import parse_session, parse_sessions
from squib.models import ExecRequest, ProcessInfo, PtySize

AGENT_BINARY = Path(__file__).parent / "bin" / "squib-agent"
"""The agent, built when squib was installed (``hatch_build.py``)."""

_RECONNECT_TIMEOUT_S = 5.0
_ANSWER_TIMEOUT_S = 15.0
"""For what a guest answers at once. It may be slow; one that is silent must not hold up whoever asks."""
_ENTROPY_BYTES = 64
_MAX_ANSWER_BYTES = 4 << 20


@dataclass(frozen=True)
class Hello:
    """What the agent says of itself and its guest."""

    agent_version: str
    boot_id: str
    kernel: str


class AgentClient:
    """Requests to the agent that ``connect`` reaches. All requests share one connection."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._connection: Http2Connection | None = None
        self._connecting = asyncio.Lock()
        self.files = AgentFiles(self._send, self._json)
        """The files of the guest."""

    async def connect(self, *, timeout_s: float, retry_s: float = 0.25) -> Hello:
        """Wait until the agent answers, at most ``timeout_s``; for ``retry_s`` see `open_channel`.

        Raises `AgentUnreachable`, `AgentVersionMismatch`.
        """
        await self._session(timeout_s, retry_s)
        answer = await self._json("GET", "/v1/hello")
        if answer.get("protocol") != PROTOCOL_VERSION:
            raise AgentVersionMismatch(
                f"the agent speaks protocol {answer.get('protocol')!r}, this squib speaks {PROTOCOL_VERSION}"
            )
        fields = (str(answer.get(name, ""))[:200] for name in ("agent_version", "boot_id", "kernel"))
        return Hello(*fields)

    async def close(self) -> None:
        """End the session. Foreground commands in the guest end with it. Idempotent."""
        if self._connection:
            await self._connection.close()
            self._connection = None

    async def setup(self, *, hostname: str, machine_id: str, env: dict[str, str]) -> None:
        """Give a booted guest its identity, the host's time and fresh entropy."""
        await self._json(
            "POST",
            "/v1/setup",
            {
                "hostname": hostname,
                "machine_id": machine_id,
                "env": env,
                "time_unix_ms": _now_unix_ms(),
                "entropy": base64.b64encode(os.urandom(_ENTROPY_BYTES)).decode(),
            },
        )

    async def set_env(self, env: dict[str, str]) -> None:
        """Replace the environment that every command starts with."""
        await self._json("POST", "/v1/setup", {"env": env})

    async def set_clock(self) -> None:
        """Set the guest's clock to the host's."""
        await self._json("POST", "/v1/setup", {"time_unix_ms": _now_unix_ms()})

    async def exec(self, request: ExecRequest) -> Response:
        """Start a command; the response streams frames (`squib.protocol.frames`).

        Closing it early kills the command, except a background command.

        Raises the `ExecError` that the agent names if the command cannot be started.
        """
        spec: dict[str, Any] = request.model_dump(exclude_defaults=True, exclude={"timeout_s"})
        if request.timeout_s is not None:
            spec["timeout_ms"] = max(1, round(request.timeout_s * 1000))
        if request.pty is not None:
            spec["pty"] = request.pty.model_dump()
        return await self._send("POST", "/v1/exec", _encode(spec), content_type="application/json")

    async def processes(self) -> list[ProcessInfo]:
        """The process sessions that run, and the ended ones that are kept; oldest first."""
        return parse_sessions(await self._json("GET", "/v1/processes"))

    async def process(self, process_id: str) -> ProcessInfo:
        """One of them. Raises `NoSuchProcess`."""
        return parse_session(await self._json("GET", f"/v1/processes/{process_id}"))

    async def output(self, process_id: str, *, stdout: int, stderr: int, none: bool) -> Response:
        """Attach to a process: the response streams frames as that of `exec`, from these offsets on; with ``none``, no
        output. Closing it does nothing to the process. Raises `NoSuchProcess`.
        """
        query = f"stdout={stdout}&stderr={stderr}" + ("&none=1" if none else "")
        return await self._send("GET", f"/v1/processes/{process_id}/output?{query}", b"", content_type="")

    async def resize(self, process_id: str, size: PtySize) -> None:
        """Set the size of a process's terminal. Raises `NoTerminal`, `NoSuchProcess`."""
        await self._json("POST", f"/v1/processes/{process_id}/resize", size.model_dump())

    async def kill(self, process_id: str) -> None:
        """Kill a process with its descendants and forget it; returns when they are gone. Raises `NoSuchProcess`."""
        await self._json("DELETE", f"/v1/processes/{process_id}")

    async def write_stdin(self, process_id: str, body: Body, *, close: bool) -> int:
        """Feed a process's standard input, and close it then if ``close``. Returns the bytes written."""
        query = "?close=1" if close else ""
        path = f"/v1/processes/{process_id}/stdin{query}"
        content_type = "application/octet-stream"
        async with await self._send("POST", path, body, content_type=content_type, may_stall=True) as response:
            written = _decode(await response.read()).get("written")
            return written if isinstance(written, int) else 0

    async def signal(self, process_id: str, signal: int) -> None:
        """Send a signal to a process's group."""
        await self._json("POST", f"/v1/processes/{process_id}/signal", {"signal": signal})

    async def poweroff(self, *, grace_s: float) -> None:
        """Ask the guest to sync its disk and power off; returns when it has begun."""
        await self._json("POST", "/v1/poweroff", {"grace_ms": round(grace_s * 1000)})

    async def _session(self, timeout_s: float, retry_s: float = 0.25) -> Http2Connection:
        async with self._connecting:
            if self._connection is None or self._connection.closed:
                channel = await open_channel(self._connect, timeout_s=timeout_s, retry_s=retry_s)
                self._connection = await Http2Connection.open(*channel)
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
        session = await self._session(_RECONNECT_TIMEOUT_S)
        response = await session.request(
            method, path, body, content_type=content_type, window_bytes=window_bytes, may_stall=may_stall
        )
        if response.status >= 400:
            async with response:
                raise _agent_error(response.status, await response.read())
        return response

    async def _json(
        self, method: str, path: str, value: dict[str, Any] | None = None, *, timeout_s: float | None = None
    ) -> dict[str, Any]:
        body = b"" if value is None else _encode(value)
        timeout_s = timeout_s or _ANSWER_TIMEOUT_S
        try:
            async with (
                asyncio.timeout(timeout_s),
                await self._send(method, path, body, content_type="application/json") as response,
            ):
                answer = await response.read(max_bytes=_MAX_ANSWER_BYTES)
        except TimeoutError:
            raise AgentUnreachable(f"the guest did not answer within {timeout_s:g} s") from None
        return _decode(answer) if answer else {}


def _now_unix_ms() -> int:
    return time.time_ns() // 1_000_000


def _encode(value: dict[str, Any]) -> bytes:
    """JSON in ASCII: bytes that are not UTF-8 travel as lone surrogates, which `json` escapes."""
    return json.dumps(value).encode("ascii")


def _decode(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise AgentUnreachable("the guest's answer is not JSON") from error
    if not isinstance(value, dict):
        raise AgentUnreachable("the guest's answer is not a JSON object")
    return value


_HINTS = {
    "no_shell": 'give the program and its arguments as a list: run(["prog", "arg"]), or squib exec VM prog arg',
    "directory_not_empty": "with recursive=True it is removed with all that is in it",
    "guest_disk_full": "squib exec VM df -h shows what is free; a larger disk: squib create --disk 20gb",
    "no_such_process": "squib ps VM lists those that are there; an ended one is kept only if it was of the background",
    "command_not_found": "look for it with: squib exec VM ls /usr/bin",
}


_SPOKEN = (
    errors.InternalError,
    errors.NoShell,
    errors.CommandNotFound,
    errors.NotExecutable,
    errors.BadWorkingDirectory,
    errors.NoSuchUser,
    errors.NoSuchProcess,
    errors.StdinClosed,
    errors.NoSuchFile,
    errors.FileExists,
    errors.NotAFile,
    errors.NotADirectory,
    errors.DirectoryNotEmpty,
    errors.PermissionDenied,
    errors.GuestDiskFull,
    errors.NoTerminal,
)
_CLASSES: dict[str, type[SquibError]] = {cls.code: cls for cls in _SPOKEN} | {"bad_request": errors.InvalidArgument}
"""What an agent may say (``protocol/agent.md`` §3). A guest cannot speak for the engine: no other error is believed."""


def _agent_error(status: int, body: bytes) -> SquibError:
    error = _decode(body).get("error")
    if not isinstance(error, dict):
        return AgentUnreachable(f"the guest answered with status {status} and no error")
    code = str(error.get("code"))
    cls = _CLASSES.get(code)
    if cls is None:
        return AgentUnreachable(f"the guest answered with status {status} and an unknown error: {code[:50]!r}")
    return cls(str(error.get("message", ""))[:2000], hint=_HINTS.get(code, ""))
