"""Frames, which carry a command's output from the agent to engine and clients.

A frame is a header of 13 bytes (kind, payload length, offset in its stream; big endian) and a payload of at most
64 KiB: see ``protocol/agent.md``. Guests are not trusted: an invalid frame raises `FrameError`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

HEADER = struct.Struct(">BIQ")
MAX_PAYLOAD_BYTES = 65_536
CONTENT_TYPE = "application/vnd.squib.frames"
TIMEOUT_EXIT_CODE = 124
_SIGNAL_BASE = 128
_MAX_DURATION_MS = 1 << 53


class FrameKind(IntEnum):
    """What a frame carries."""

    STARTED = 0
    STDOUT = 1
    STDERR = 2
    EXIT = 3
    IDLE = 4
    ERROR = 5
    """Sent only by the engine, when it cannot learn how the command ended. The payload is an error in the form of
    `squib.protocol.errors.to_wire`.
    """


_KINDS = frozenset(FrameKind)


class FrameError(ValueError):
    """The bytes are not a valid frame."""


@dataclass(frozen=True)
class Frame:
    """One frame. ``offset`` is the position of the payload in its stream."""

    kind: FrameKind
    payload: bytes
    offset: int = 0

    def json(self) -> dict[str, Any]:
        """Parse the payload of a frame that is not output.

        Raises `FrameError` if it is not a JSON object.
        """
        try:
            value = json.loads(self.payload)
        except (ValueError, RecursionError) as error:
            raise FrameError(f"the payload of a {self.kind.name} frame is not JSON") from error
        if not isinstance(value, dict):
            raise FrameError(f"the payload of a {self.kind.name} frame is not a JSON object")
        return value


def encode(kind: FrameKind, payload: bytes, offset: int = 0) -> bytes:
    """Encode a frame."""
    return HEADER.pack(kind, len(payload), offset) + payload


def encode_json(kind: FrameKind, value: object) -> bytes:
    """Encode a frame with a JSON payload."""
    return encode(kind, json.dumps(value).encode())


class FrameDecoder:
    """Decode a byte stream, in pieces of any size, into frames.

    Buffers at most one unfinished frame.

    Frames of an unknown kind, which a newer engine may send, are skipped.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Add ``data`` and yield the frames that are now complete.

        Raises `FrameError`.
        """
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= HEADER.size:
            kind, length, offset = HEADER.unpack_from(self._buffer, start)
            if length > MAX_PAYLOAD_BYTES:
                raise FrameError(f"invalid frame: kind {kind}, {length} bytes")
            end = start + HEADER.size + length
            if len(self._buffer) < end:
                break
            if kind in _KINDS:
                yield Frame(FrameKind(kind), bytes(self._buffer[start + HEADER.size : end]), offset)
            start = end
        del self._buffer[:start]


@dataclass(frozen=True)
class CommandEnd:
    """How a command ended.

    ``exit_code`` follows the shell: 128 + n after signal n, 124 after a timeout. ``oom_killed`` tells that the guest's
    kernel killed a process of the command for lack of memory.
    """

    exit_code: int
    signal: int | None
    timed_out: bool
    duration_s: float
    oom_killed: bool = False

    @classmethod
    def of(cls, values: dict[str, Any]) -> CommandEnd:
        """Read the payload of an ``EXIT`` frame.

        Raises `FrameError` if it is invalid.
        """
        exit_code, signal = _number(values, "exit_code", 255), _number(values, "signal", 127)
        timed_out = values.get("timed_out") is True
        if timed_out:
            exit_code = TIMEOUT_EXIT_CODE
        elif signal is not None:
            exit_code = _SIGNAL_BASE + signal
        if exit_code is None:
            raise FrameError("invalid exit frame: no exit_code and no signal")
        duration_s = (_number(values, "duration_ms", _MAX_DURATION_MS) or 0) / 1000
        return cls(exit_code, signal, timed_out, duration_s, values.get("oom_killed") is True)


def _number(values: dict[str, Any], name: str, highest: int) -> int | None:
    """Read an integer that a guest sent.

    Raises `FrameError` if it is not one or out of range.
    """
    value = values.get(name)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value <= highest:
        raise FrameError(f"invalid exit frame: {name} is not a number from 0 to {highest}")
    return value
