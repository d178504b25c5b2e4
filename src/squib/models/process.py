"""Commands in a guest and their processes."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from squib.models.base import Env, GuestString, RequestModel, ResponseModel, known_fields

MAX_TIMEOUT_S = 366 * 86_400
"""The longest timeout of a command: a year. The agent counts nanoseconds in 64 bits."""


class PtySize(RequestModel):
    """The size of a terminal, in characters."""

    rows: int = Field(default=24, ge=1, le=65_535)
    cols: int = Field(default=80, ge=1, le=65_535)


class ExecRequest(RequestModel):
    """A command to run in a guest.

    Give exactly one of ``argv`` (no shell), ``shell`` (``/bin/sh -c``) and ``login`` (the user's login shell). ``sudo``
    runs the command as root on behalf of ``user``. A ``background`` command outlives its client. It gets the
    ``restore_signal``, a number, when it continues in another VM (a fork, a copy) or at a later time (after a suspend
    or a rollback). With ``pty`` the command gets a terminal of that size, and all output is standard output. With a
    ``timeout_s`` of 0 it has no time limit.
    """

    argv: list[GuestString] | None = Field(default=None, min_length=1)
    shell: GuestString | None = None
    login: bool = False
    env: Env = Field(default_factory=dict, repr=False)
    cwd: GuestString | None = None
    user: GuestString | None = None
    sudo: bool = False
    stdin: bool = False
    timeout_s: float | None = Field(default=None, ge=0, le=MAX_TIMEOUT_S)
    background: bool = False
    restore_signal: int | None = Field(default=None, ge=1, le=64)
    pty: PtySize | None = None

    @field_validator("timeout_s")
    @classmethod
    def _zero_is_none(cls, value: float | None) -> float | None:
        return value or None

    @model_validator(mode="after")
    def _one_command(self) -> ExecRequest:
        if (self.argv is not None) + (self.shell is not None) + self.login != 1:
            raise ValueError("give exactly one of argv, shell and login")
        return self


class OutputRange(ResponseModel):
    """The range of an output stream that is still kept, in bytes.

    ``start`` is included and ``end`` is not. ``end`` is also the number of bytes written so far.
    """

    start: int = Field(default=0, ge=0)
    end: int = Field(default=0, ge=0)


class ProcessInfo(ResponseModel):
    """A running command, or a background command that has ended and is kept.

    ``id`` is unique in this VM until the VM stops. ``exit_code`` is set once the command has ended, as a shell shows
    it: 128 + n after ``signal`` n, 124 after a timeout. ``readers`` counts the clients that follow the output. ``argv``
    is truncated to 2 KiB.
    """

    id: str
    pid: int
    argv: list[str]
    user: str
    started_at: datetime
    background: bool
    pty: Annotated[PtySize | None, known_fields(PtySize)]
    stdin: bool
    readers: int
    stdout: OutputRange
    stderr: OutputRange
    running: bool
    exit_code: int | None = None
    signal: int | None = None
    timed_out: bool = False
    duration_s: float | None = None
