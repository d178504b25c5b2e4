"""The engine, and the checks of `squib doctor`."""

from __future__ import annotations

import os
import shlex
from datetime import datetime
from enum import StrEnum
from typing import Annotated

from squib.models.base import ResponseModel, known_values


class CheckStatus(StrEnum):
    """The result of a `Check`. A warning does not keep VMs from running."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    UNKNOWN = "unknown"


class Fix(ResponseModel):
    """A command that repairs what a `Check` found.

    ``as_root``: only root can run it.
    """

    argv: tuple[str, ...]
    as_root: bool = False

    def command(self) -> tuple[str, ...]:
        """Return the arguments to run, with ``sudo`` if it is needed.

        ``sudo`` is added if only root can run the command and this process is not root.
        """
        return ("sudo", *self.argv) if self.as_root and os.geteuid() != 0 else self.argv

    def __str__(self) -> str:
        """Return the command as a shell line."""
        return shlex.join(self.command())


class Check(ResponseModel):
    """One check of `squib doctor`.

    ``fix`` is the command that repairs it, if there is one.
    """

    name: str
    status: Annotated[CheckStatus, known_values(CheckStatus, CheckStatus.UNKNOWN)]
    detail: str
    fix: Fix | None = None


class DriverChoice(ResponseModel):
    """The driver that a new VM would get. ``reason`` says why."""

    driver: str
    accelerator: str
    reason: str


class EngineInfo(ResponseModel):
    """The engine that answered."""

    version: str
    pid: int
    home: str
    driver: str
    accelerator: str
    started_at: datetime
    vm_count: int
    running_count: int


class WireError(ResponseModel):
    """An error: see ``docs/api.md`` for the codes."""

    code: str
    message: str
    hint: str = ""
    detail: str = ""
