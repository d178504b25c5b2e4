"""Results of commands and of copying."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

from squib.errors import CommandFailed, CommandTimeout, InvalidArgument, OutputTooLarge
from squib.protocol.frames import CommandEnd as CommandEnd
from squib.protocol.frames import Frame, FrameKind
from squib.protocol.text import printable_lines

MAX_OUTPUT_BYTES = 64 << 20
"""The most output that `ExecResult` keeps. The rest is discarded and `ExecResult.truncated` is set."""

Truncate = Literal["head", "tail", "error"]
_PIECE_BYTES = 64 << 10
_SHOWN_COMMAND_CHARS = 200
_SHOWN_STDERR_CHARS = 2000


@dataclass(frozen=True)
class CopyResult:
    """The result of an upload or download.

    ``entries`` counts the copied files, directories and links. ``bytes`` is the total size of the files. ``left_out``
    lists the local files that were skipped, each with the reason.
    """

    entries: int = 0
    bytes: int = 0
    left_out: tuple[str, ...] = ()

    def __add__(self, other: CopyResult) -> CopyResult:
        return CopyResult(self.entries + other.entries, self.bytes + other.bytes, self.left_out + other.left_out)


@dataclass(frozen=True)
class ExecResult:
    """The result of a command.

    - ``exit_code``: as in a shell, 128 + n after signal n, and 124 after a timeout.
    - ``signal``: the signal that ended the command, or ``None``.
    - ``timed_out``: whether the timeout killed the command.
    - ``duration_s``: the run time in seconds.
    - ``stdout_bytes``, ``stderr_bytes``, ``output_bytes``: the raw output. ``output_bytes`` holds both streams in the
      order in which they were read.
    - ``oom_killed``: whether the guest ran out of memory and its kernel killed a process of the command.
    - ``truncated``: whether output beyond ``max_output`` (default 64 MiB) was discarded.
    - ``dropped_bytes``: how much.
    """

    exit_code: int
    signal: int | None
    timed_out: bool
    duration_s: float
    stdout_bytes: bytes = field(repr=False)
    stderr_bytes: bytes = field(repr=False)
    output_bytes: bytes = field(repr=False)
    truncated: bool = False
    dropped_bytes: int = 0
    oom_killed: bool = False

    @property
    def ok(self) -> bool:
        """Whether the exit code is 0."""
        return self.exit_code == 0

    @property
    def stdout(self) -> str:
        """Standard output, decoded as UTF-8 with U+FFFD for invalid bytes."""
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        """Standard error, decoded as UTF-8 with U+FFFD for invalid bytes."""
        return self.stderr_bytes.decode(errors="replace")

    @property
    def output(self) -> str:
        """Both streams, decoded as UTF-8 with U+FFFD for invalid bytes."""
        return self.output_bytes.decode(errors="replace")

    def check(self, command: str) -> ExecResult:
        """Return this result if it is `ok`; otherwise raise an error.

        Raises `CommandTimeout` or `CommandFailed`, with the last 2000 characters of standard error as detail, without
        control characters. The error's ``result`` is this result.
        """
        if self.ok:
            return self
        shown = command if len(command) <= _SHOWN_COMMAND_CHARS else command[:_SHOWN_COMMAND_CHARS] + "…"
        detail = printable_lines(self.stderr[-_SHOWN_STDERR_CHARS:]).rstrip()
        if self.timed_out:
            timeout = CommandTimeout(f"the command timed out: {shown}", detail=detail)
            timeout.result = self
            raise timeout
        reason = " (out of memory)" if self.oom_killed else ""
        failure = CommandFailed(f"the command failed with exit code {self.exit_code}{reason}: {shown}", detail=detail)
        failure.result = self
        raise failure


OnOutput = Callable[[bytes], None]


class Collector:
    """Collects a command's output, up to ``max_bytes``, and builds its result.

    ``truncate`` is as in `AsyncVM.run`.

    Raises `InvalidArgument` for a negative limit or an unknown ``truncate``.
    """

    def __init__(
        self,
        on_stdout: OnOutput | None,
        on_stderr: OnOutput | None,
        max_bytes: int = MAX_OUTPUT_BYTES,
        truncate: Truncate = "head",
    ) -> None:
        if max_bytes < 0:
            raise InvalidArgument(f"max_output: {max_bytes} is negative")
        if truncate not in get_args(Truncate):
            raise InvalidArgument(f"truncate: {truncate!r} is not one of {', '.join(get_args(Truncate))}")
        self._callbacks = {FrameKind.STDOUT: on_stdout, FrameKind.STDERR: on_stderr}
        self._max_bytes = max_bytes
        self._truncate = truncate
        self._pieces: deque[tuple[FrameKind, bytearray]] = deque()
        self._kept = 0
        self._dropped = 0

    def add(self, frame: Frame) -> None:
        """Add one output frame and call its callback.

        Raises `OutputTooLarge` if it is above an ``error`` limit.
        """
        if callback := self._callbacks[frame.kind]:
            callback(frame.payload)
        excess = max(0, self._kept + len(frame.payload) - self._max_bytes)
        if excess and self._truncate == "error":
            raise OutputTooLarge(f"the command wrote more than {self._max_bytes} bytes", hint="use a larger max_output")
        if self._truncate == "tail":
            self._append(frame.kind, frame.payload)
            self._drop_oldest(excess)
        else:
            self._append(frame.kind, frame.payload[: len(frame.payload) - excess])
        self._dropped += excess

    def _append(self, kind: FrameKind, data: bytes) -> None:
        if self._pieces and self._pieces[-1][0] is kind and len(self._pieces[-1][1]) < _PIECE_BYTES:
            self._pieces[-1][1].extend(data)  # a command may write single bytes
        elif data:
            self._pieces.append((kind, bytearray(data)))
        self._kept += len(data)

    def _drop_oldest(self, count: int) -> None:
        self._kept -= count
        while count:
            oldest = self._pieces[0][1]
            taken = min(count, len(oldest))
            del oldest[:taken]
            count -= taken
            if not oldest:
                self._pieces.popleft()

    def result(self, end: CommandEnd) -> ExecResult:
        """Build the result. Call it after the last frame was added."""
        return ExecResult(
            exit_code=end.exit_code,
            signal=end.signal,
            timed_out=end.timed_out,
            duration_s=end.duration_s,
            stdout_bytes=b"".join(piece for kind, piece in self._pieces if kind is FrameKind.STDOUT),
            stderr_bytes=b"".join(piece for kind, piece in self._pieces if kind is FrameKind.STDERR),
            output_bytes=b"".join(piece for _, piece in self._pieces),
            truncated=self._dropped > 0,
            dropped_bytes=self._dropped,
            oom_killed=end.oom_killed,
        )
