"""The plain values that cross squib's boundaries: configuration in, descriptions out.

All are frozen. Sizes are in MiB and times in seconds unless the name says otherwise. What a user typed is checked
here and only here, so a value that exists is a value that can be used.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}"
DEFAULT_DISK_SIZE_MIB = 10 * 1024
MAX_TIMEOUT_S = 366 * 86_400
"""Of a command: a year. The agent counts nanoseconds in 64 bits, and infinity is no number there."""
_NAME = re.compile(NAME_PATTERN)
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_name(value: str) -> str:
    """A name or ID: 1 to 63 letters, digits, ``_``, ``.`` or ``-``, the first a letter or digit."""
    if not _NAME.fullmatch(value):
        shown = value if len(value) <= 80 else value[:77] + "..."
        raise ValueError(
            f"{shown!r} is not a name: 1 to 63 letters, digits, '_', '.' or '-', the first a letter or digit"
        )
    return value


def check_env(value: dict[str, str]) -> dict[str, str]:
    """Environment variables: C identifiers as names, no NUL in values."""
    for name, text in value.items():
        if not _ENV_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of an environment variable")
        if "\0" in text:
            raise ValueError(f"the value of {name} holds a NUL byte")
    return value


def _check_no_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("holds a NUL byte")
    return value


Name = Annotated[str, AfterValidator(check_name)]
Env = Annotated[dict[str, str], AfterValidator(check_env)]
GuestString = Annotated[str, AfterValidator(_check_no_nul)]


class Model(BaseModel):
    """Base of all values: frozen, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class VMState(StrEnum):
    """Where a VM is in its life. ``creating``, ``starting``, ``stopping`` and ``deleting`` are on the way."""

    CREATING = "creating"
    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    STOPPED = "stopped"
    ERROR = "error"
    DELETING = "deleting"


class VMConfig(Model):
    """What a VM is made of.

    ``vm_id`` and ``name`` are chosen if not given. ``mem_size_mib`` defaults to what the image needs. ``disk_size_mib``
    is the size of the writable layer, which takes only the space that is used. ``kernel_path`` and ``rootfs_path``
    replace squib's kernel and the runtime's image; a root filesystem (squashfs or ext4) is never written to.
    ``boot_args`` is added to the kernel's command line. ``env_vars`` is the environment of every command.
    """

    vm_id: Name | None = None
    name: Name | None = None
    project: Name | None = None
    runtime: Name = "base"
    vcpu_count: int = Field(default=1, ge=1, le=64)
    mem_size_mib: int | None = Field(default=None, ge=64, le=1024 * 1024)
    disk_size_mib: int = Field(default=DEFAULT_DISK_SIZE_MIB, ge=16, le=16 * 1024 * 1024)
    kernel_path: str | None = None
    rootfs_path: str | None = None
    boot_args: str = ""
    env_vars: Env = Field(default_factory=dict, repr=False)

    @field_validator("kernel_path", "rootfs_path")
    @classmethod
    def _usable_path(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not value.startswith("/"):
            raise ValueError(f"{value!r} is not an absolute path")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{value!r} is not UTF-8") from None
        return _check_no_nul(value)

    @field_validator("boot_args")
    @classmethod
    def _one_line(cls, value: str) -> str:
        if not value.isprintable() or not value.isascii():
            raise ValueError(f"{value!r} is not one line of printable ASCII")
        return value


class VMInfo(Model):
    """A VM as the engine knows it. ``reason`` says why it is in this state, where that is not obvious.

    ``env_names`` are the names of `VMConfig.env_vars`; the values never leave the engine.
    """

    vm_id: str
    name: str
    state: VMState
    reason: str = ""
    project: str | None
    runtime: str | None
    kernel: str
    rootfs: str
    vcpu_count: int
    mem_size_mib: int
    disk_size_mib: int
    boot_args: str
    env_names: list[str]
    driver: str
    accelerator: str
    pid: int | None
    created_at: datetime
    started_at: datetime | None
    stopped_at: datetime | None


class ExecRequest(Model):
    """A command for a guest. Exactly one of ``argv`` (no shell) and ``shell`` (``/bin/sh -c``)."""

    argv: list[GuestString] | None = Field(default=None, min_length=1)
    shell: GuestString | None = None
    env: Env = Field(default_factory=dict, repr=False)
    cwd: GuestString | None = None
    user: GuestString | None = None
    stdin: bool = False
    timeout_s: float | None = Field(default=None, gt=0, le=MAX_TIMEOUT_S)

    @model_validator(mode="after")
    def _one_command(self) -> ExecRequest:
        if (self.argv is None) == (self.shell is None):
            raise ValueError("give exactly one of argv and shell")
        return self


class ImageInfo(Model):
    """A root filesystem in the cache. ``digest`` is ``sha256:`` and 64 hex digits of the file."""

    name: str
    digest: str
    size_bytes: int
    built_at: datetime
    in_use_by: list[str] = Field(default_factory=list)


class KernelInfo(Model):
    """A kernel in the cache. ``digest`` is that of its image file."""

    version: str
    digest: str
    size_bytes: int
    built_at: datetime


class Progress(Model):
    """A step of something long. ``done`` and ``total`` are in ``unit``; ``total`` is ``None`` if not known."""

    step: str
    done: int = 0
    total: int | None = None
    unit: str = ""


OnProgress = Callable[[Progress], None]
"""Is told of the steps of something long, as they come."""


class CheckStatus(StrEnum):
    """What came of a `Check`. What is only a warning keeps nothing from working."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Check(Model):
    """One thing that `squib doctor` looked at. ``fix`` is the command that mends it, as typed in a shell."""

    name: str
    status: CheckStatus
    detail: str
    fix: str = ""


class EngineInfo(Model):
    """The engine that answers."""

    version: str
    pid: int
    home: str
    driver: str
    accelerator: str
    started_at: datetime
    vm_count: int
    running_count: int
