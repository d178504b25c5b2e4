"""The plain values that cross squib's boundaries: configuration in, descriptions out.

All are frozen. Sizes are in MiB and times in seconds unless the name says otherwise. What a user typed is checked
here and only here, so a value that exists is a value that can be used.
"""

from __future__ import annotations

import os
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
MAX_PATH_BYTES = 4096
MAX_FILE_NAME_BYTES = 255
_MAX_INT64 = 2**63 - 1
_MAX_ID = 2**32 - 1
_NAME = re.compile(NAME_PATTERN)
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MAX_VARIABLE_BYTES = 128 * 1024 - 2
_MAX_ENV_BYTES = 1024 * 1024
"""What Linux takes of one variable, and half of what it takes of all, so that there is room for arguments."""


def check_name(value: str) -> str:
    """A name or ID: 1 to 63 letters, digits, ``_``, ``.`` or ``-``, the first a letter or digit."""
    if not _NAME.fullmatch(value):
        shown = value if len(value) <= 80 else value[:77] + "..."
        raise ValueError(
            f"{shown!r} is not a name: 1 to 63 letters, digits, '_', '.' or '-', the first a letter or digit"
        )
    return value


def check_env_name(name: str) -> str:
    """The name of an environment variable: a C identifier."""
    if not _ENV_NAME.fullmatch(name):
        shown = name if len(name) <= 80 else name[:77] + "..."
        raise ValueError(f"{shown!r} is not the name of an environment variable")
    return name


def check_env(value: dict[str, str]) -> dict[str, str]:
    """Environment variables: C identifiers as names, no NUL in values, no more than a command can be started with."""
    total = 0
    for name, text in value.items():
        check_env_name(name)
        if "\0" in text:
            raise ValueError(f"the value of {name} holds a NUL byte")
        size = len(name) + len(text.encode(errors="surrogateescape"))
        if size > _MAX_VARIABLE_BYTES:
            raise ValueError(f"{name} is of {size} bytes, Linux takes {_MAX_VARIABLE_BYTES}")
        total += size
    if total > _MAX_ENV_BYTES:
        raise ValueError(f"the variables are of {total} bytes together, at most {_MAX_ENV_BYTES} are possible")
    return value


def _check_no_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("holds a NUL byte")
    return value


Name = Annotated[str, AfterValidator(check_name)]
Env = Annotated[dict[str, str], AfterValidator(check_env)]
EnvName = Annotated[str, AfterValidator(check_env_name)]
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

    ``env_names`` are the names of the VM-wide environment; its values are in no description.
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


class PtySize(Model):
    """The size of a terminal, in characters."""

    rows: int = Field(default=24, ge=1, le=65_535)
    cols: int = Field(default=80, ge=1, le=65_535)


class ExecRequest(Model):
    """A command for a guest. Exactly one of ``argv`` (no shell), ``shell`` (``/bin/sh -c``) and ``login`` (the user's
    login shell).

    ``sudo`` runs it as root on behalf of ``user``. A command in the ``background`` outlives its client. With ``pty`` it
    gets a terminal of that size; all its output is then standard output.
    """

    argv: list[GuestString] | None = Field(default=None, min_length=1)
    shell: GuestString | None = None
    login: bool = False
    env: Env = Field(default_factory=dict, repr=False)
    cwd: GuestString | None = None
    user: GuestString | None = None
    sudo: bool = False
    stdin: bool = False
    timeout_s: float | None = Field(default=None, gt=0, le=MAX_TIMEOUT_S)
    background: bool = False
    pty: PtySize | None = None

    @model_validator(mode="after")
    def _one_command(self) -> ExecRequest:
        if (self.argv is not None) + (self.shell is not None) + self.login != 1:
            raise ValueError("give exactly one of argv, shell and login")
        return self


class OutputRange(Model):
    """Which bytes of a command's stream are kept: from ``start`` up to ``end``, which is how much there was so far."""

    start: int = Field(default=0, ge=0)
    end: int = Field(default=0, ge=0)


class ProcessInfo(Model):
    """A command in a guest: one that runs, or one of the background that has ended and is still kept.

    ``id`` names it in this VM until the VM is stopped. Either ``running``, or ``exit_code`` (as a shell shows it: 128 +
    n after ``signal`` n, 124 after its timeout) says how it ended. ``readers`` is how many follow its output. Of
    ``argv`` there are the first 2 KiB.
    """

    id: str
    pid: int
    argv: list[str]
    user: str
    started_at: datetime
    background: bool
    pty: PtySize | None
    stdin: bool
    readers: int
    stdout: OutputRange
    stderr: OutputRange
    running: bool
    exit_code: int | None = None
    signal: int | None = None
    timed_out: bool = False
    duration_s: float | None = None


def check_file_name(value: str) -> str:
    """A name in a directory: 1 to 255 bytes without ``/`` and NUL. The root directory's is ``/``."""
    size = len(os.fsencode(value))
    if value != "/" and (not 0 < size <= MAX_FILE_NAME_BYTES or "/" in value or "\0" in value):
        raise ValueError(f"{value[:80]!r} is not the name of a file")
    return value


def _check_short(value: str | None) -> str | None:
    if value is not None and len(value) > MAX_PATH_BYTES:
        raise ValueError(f"it has {len(value)} characters")
    return value


FileName = Annotated[str, AfterValidator(check_file_name)]
_Short = AfterValidator(_check_short)


class FileType(StrEnum):
    """What a path in a guest names."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    FIFO = "fifo"
    SOCKET = "socket"
    CHAR_DEVICE = "char_device"
    BLOCK_DEVICE = "block_device"


class FileInfo(Model):
    """A file in a guest. Names may hold any bytes: those that are not UTF-8 are lone surrogates, as in `os.listdir`.

    ``mode`` is the permission bits, with set-id and sticky. ``user`` and ``group`` are ``None`` where the image does
    not name ``uid`` and ``gid``. ``mtime`` is in seconds since 1970, ``mtime_ns`` the same in nanoseconds.
    """

    name: FileName
    type: FileType
    size: int = Field(ge=0, le=_MAX_INT64)
    mode: int = Field(ge=0, le=0o7777)
    uid: int = Field(ge=0, le=_MAX_ID)
    gid: int = Field(ge=0, le=_MAX_ID)
    user: Annotated[str | None, _Short]
    group: Annotated[str | None, _Short]
    mtime_ns: int = Field(ge=-_MAX_INT64, le=_MAX_INT64)
    link_target: Annotated[str | None, _Short] = None

    @property
    def mtime(self) -> float:
        return self.mtime_ns / 1e9


class FileEventType(StrEnum):
    """What happened to a file; ``overflow``: so much that some of it is not told."""

    CREATED = "created"
    MODIFIED = "modified"
    DELETED = "deleted"
    MOVED = "moved"
    ATTRIBUTES = "attributes"
    OVERFLOW = "overflow"


class FileEvent(Model):
    """A change below a watched directory. ``path`` is absolute; ``source`` is where a ``moved`` file was before."""

    type: FileEventType
    path: str = ""
    source: str | None = None


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
