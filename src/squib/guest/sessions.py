"""Process sessions as a guest describes them (``protocol/agent.md`` §3): what it says is checked, field by field."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from squib.errors import AgentUnreachable
from squib.models import OutputRange, ProcessInfo, PtySize
from squib.protocol.frames import CommandEnd, Frame, FrameError

MAX_SESSIONS = 10_000
_MAX_TIME_MS = 253_402_300_799_000
"""The end of the year 9999, which is as far as `datetime` goes."""

_Offset = Annotated[int, Field(ge=0, lt=1 << 64)]


class _Wire(BaseModel):
    """Nothing is converted; fields that are not known are ignored, as everywhere in the protocol."""

    model_config = ConfigDict(strict=True, frozen=True)


class _Size(_Wire):
    rows: int = Field(ge=1, le=65_535)
    cols: int = Field(ge=1, le=65_535)


class _Range(_Wire):
    start: _Offset
    end: _Offset

    @model_validator(mode="after")
    def _in_order(self) -> _Range:
        if self.start > self.end:
            raise ValueError("start is past end")
        return self


class _Started(_Wire):
    id: str = Field(pattern=r"\Ap[0-9]{1,18}\z")
    pid: int = Field(ge=0, lt=1 << 31)


class _Session(_Started):
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


def parse_session(value: object) -> ProcessInfo:
    """One session. Raises `AgentUnreachable` if it is none."""
    try:
        session = _Session.model_validate(value)
        end = None if session.exit is None else CommandEnd.of(session.exit)
    except (ValidationError, FrameError):
        raise AgentUnreachable("the guest's description of a process cannot be read") from None
    return ProcessInfo(
        id=session.id,
        pid=session.pid,
        argv=session.argv,
        user=session.user,
        started_at=datetime.fromtimestamp(session.started_unix_ms / 1000, UTC),
        background=session.background,
        pty=PtySize(rows=session.pty.rows, cols=session.pty.cols) if session.pty else None,
        stdin=session.stdin,
        readers=session.readers,
        stdout=OutputRange(start=session.stdout.start, end=session.stdout.end),
        stderr=OutputRange(start=session.stderr.start, end=session.stderr.end),
        running=end is None,
        exit_code=end.exit_code if end else None,
        signal=end.signal if end else None,
        timed_out=end.timed_out if end else False,
        duration_s=end.duration_s if end else None,
    )


def parse_sessions(answer: dict[str, Any]) -> list[ProcessInfo]:
    """The answer that lists them, at most `MAX_SESSIONS`. Raises `AgentUnreachable` if it is none."""
    sessions = answer.get("processes")
    if not isinstance(sessions, list) or len(sessions) > MAX_SESSIONS:
        raise AgentUnreachable("the guest's list of processes cannot be read")
    return [parse_session(session) for session in sessions]


def parse_started(frame: Frame) -> tuple[str, int]:
    """The id and the pid in a ``STARTED`` frame. Raises `AgentUnreachable` if there are none."""
    try:
        started = _Started.model_validate(frame.json())
    except (ValidationError, FrameError):
        raise AgentUnreachable("the guest's first frame does not name the process that it has started") from None
    return started.id, started.pid
