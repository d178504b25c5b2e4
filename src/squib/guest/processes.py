"""Processes as a guest describes them (``protocol/agent.md`` §3), checked."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from squib.errors import AgentProtocolError
from squib.models import OutputRange, ProcessInfo, PtySize
from squib.protocol.frames import CommandEnd, Frame, FrameError

MAX_PROCESSES = 2000
_PROCESSES_IN_A_ROW = 20
_MAX_TIME_MS = 253_402_300_799_000
"""The end of the year 9999, the limit of `datetime`."""

_Offset = Annotated[int, Field(ge=0, lt=1 << 64)]


class _Described(BaseModel):
    """A strict model: values are not converted, unknown fields are ignored.

    The protocol ignores unknown fields everywhere.
    """

    model_config = ConfigDict(strict=True, frozen=True)


class _Size(_Described):
    rows: int = Field(ge=1, le=65_535)
    cols: int = Field(ge=1, le=65_535)


class _Range(_Described):
    start: _Offset
    end: _Offset

    @model_validator(mode="after")
    def _in_order(self) -> _Range:
        if self.start > self.end:
            raise ValueError("start is past end")
        return self


class _Started(_Described):
    id: str = Field(pattern=r"\Ap[0-9]{1,18}\z")
    pid: int = Field(ge=0, lt=1 << 31)


class _Process(_Started):
    argv: list[str]
    user: str
    started_unix_ms: int = Field(ge=0, le=_MAX_TIME_MS)
    background: bool
    pty: _Size | None
    stdin: bool
    readers: int = Field(ge=0, lt=1 << 31)
    stdout: _Range
    stderr: _Range
    exit: dict[str, Any] | None


def parse_process(value: object) -> ProcessInfo:
    """Return the process that ``value`` describes.

    Raises `AgentProtocolError`.
    """
    try:
        process = _Process.model_validate(value)
        end = None if process.exit is None else CommandEnd.of(process.exit)
    except (ValidationError, FrameError):
        raise AgentProtocolError("the guest sent an invalid description of a process") from None
    return ProcessInfo(
        id=process.id,
        pid=process.pid,
        argv=process.argv,
        user=process.user,
        started_at=datetime.fromtimestamp(process.started_unix_ms / 1000, UTC),
        background=process.background,
        pty=PtySize(rows=process.pty.rows, cols=process.pty.cols) if process.pty else None,
        stdin=process.stdin,
        readers=process.readers,
        stdout=OutputRange(start=process.stdout.start, end=process.stdout.end),
        stderr=OutputRange(start=process.stderr.start, end=process.stderr.end),
        running=end is None,
        exit_code=end.exit_code if end else None,
        signal=end.signal if end else None,
        timed_out=end.timed_out if end else False,
        duration_s=end.duration_s if end else None,
    )


async def parse_processes(reply: dict[str, Any]) -> list[ProcessInfo]:
    """Return the processes in a reply, at most `MAX_PROCESSES`.

    The event loop gets turns in between, because parsing many takes a while.

    Raises `AgentProtocolError`.
    """
    processes = reply.get("processes")
    if not isinstance(processes, list):
        raise AgentProtocolError("the guest sent an invalid list of processes")
    if len(processes) > MAX_PROCESSES:
        raise AgentProtocolError(f"the guest lists {len(processes)} processes; the limit is {MAX_PROCESSES}")
    found = []
    for number, process in enumerate(processes, 1):
        found.append(parse_process(process))
        if number % _PROCESSES_IN_A_ROW == 0:
            await asyncio.sleep(0)
    return found


def parse_started(frame: Frame) -> tuple[str, int]:
    """Return the id and the pid in a ``STARTED`` frame.

    Raises `AgentProtocolError`.
    """
    try:
        started = _Started.model_validate(frame.json())
    except (ValidationError, FrameError):
        raise AgentProtocolError("the guest's STARTED frame does not name a process") from None
    return started.id, started.pid
