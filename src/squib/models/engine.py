"""The engine, and the checks of `squib doctor`."""

from __future__ import annotations

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


class Check(ResponseModel):
    """One check of `squib doctor`. ``fix`` is the command that repairs it, as typed in a shell."""

    name: str
    status: Annotated[CheckStatus, known_values(CheckStatus, CheckStatus.UNKNOWN)]
    detail: str
    fix: str = ""


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
