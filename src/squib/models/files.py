"""Files in a guest."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Field

from squib.models.base import MAX_PATH_BYTES, ResponseModel, known_values

MAX_FILE_NAME_BYTES = 255
_MAX_INT64 = 2**63 - 1
_MAX_ID = 2**32 - 1


def check_file_name(value: str) -> str:
    """Check that a file name has 1 to 255 bytes, and no ``/`` or NUL.

    The name ``/`` is allowed: it is the root directory.
    """
    size = len(os.fsencode(value))
    if value != "/" and (not 0 < size <= MAX_FILE_NAME_BYTES or "/" in value or "\0" in value):
        raise ValueError(f"{value[:80]!r} is not a file name")
    return value


def _check_short(value: str | None) -> str | None:
    if value is not None and len(value) > MAX_PATH_BYTES:
        raise ValueError(f"it has {len(value)} characters")
    return value


FileName = Annotated[str, AfterValidator(check_file_name)]
_Short = AfterValidator(_check_short)


class FileType(StrEnum):
    """The type of a file.

    ``unknown`` is one that this client does not know.
    """

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    FIFO = "fifo"
    SOCKET = "socket"
    CHAR_DEVICE = "char_device"
    BLOCK_DEVICE = "block_device"
    UNKNOWN = "unknown"


class FileInfo(ResponseModel):
    """A file in a guest.

    Names may contain any bytes. Bytes that are not UTF-8 become lone surrogates, as in `os.listdir`. ``mode`` holds the
    permission bits with set-id and sticky. ``user`` and ``group`` are ``None`` if the image has no name for the ID.
    ``mtime`` is in seconds since 1970, ``mtime_ns`` is the same in nanoseconds.
    """

    name: FileName
    type: Annotated[FileType, known_values(FileType, FileType.UNKNOWN)]
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


class Account(ResponseModel):
    """A user of a guest, from its ``/etc/passwd``."""

    name: Annotated[str, _Short]
    uid: int = Field(ge=0, le=_MAX_ID)
    gid: int = Field(ge=0, le=_MAX_ID)
    home: Annotated[str, _Short]
    shell: Annotated[str, _Short]


class FileEventType(StrEnum):
    """What happened to a file.

    ``overflow``: events were lost because there were too many.
    """

    CREATED = "created"
    MODIFIED = "modified"
    DELETED = "deleted"
    MOVED = "moved"
    ATTRIBUTES = "attributes"
    OVERFLOW = "overflow"
    UNKNOWN = "unknown"


class FileEvent(ResponseModel):
    """A change below a watched directory.

    ``path`` is absolute; ``source`` is the former path of a ``moved`` file.
    """

    type: Annotated[FileEventType, known_values(FileEventType, FileEventType.UNKNOWN)]
    path: str = ""
    source: str | None = None
