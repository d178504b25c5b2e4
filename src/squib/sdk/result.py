"""What a command left behind, and how it is gathered from its frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from squib.errors import CommandFailed, CommandTimeout
from squib.protocol.frames import CommandEnd as CommandEnd
from squib.protocol.frames import Frame, FrameKind

MAX_OUTPUT_BYTES = 64 << 20
"""Of a command's output this much is kept; the rest is read and dropped, and `ExecResult.truncated` says so."""

_SHOWN_COMMAND_CHARS = 200
_SHOWN_STDERR_CHARS = 2000


@dataclass(frozen=True)
class Copied:
    """What was copied: ``entries`` (files, directories, links) and ``bytes`` of files. ``left_out`` names the files of
    this machine that were not, each with the reason.
    """

    entries: int = 0
    bytes: int = 0
    left_out: tuple[str, ...] = ()

    def __add__(self, other: Copied) -> Copied:
        return Copied(self.entries + other.entries, self.bytes + other.bytes, self.left_out + other.left_out)


@dataclass(frozen=True)
class ExecResult:
    """The end of a command.

    ``exit_code`` is as a shell shows it: 128 + n after signal n, 124 after a timeout. Text is decoded as UTF-8, with
    U+FFFD for what is not; the ``_bytes`` are what the command wrote. ``output`` holds both streams in the order in
    which they were read.
    """

    exit_code: int
    signal: int | None
    timed_out: bool
    duration_s: float
    stdout_bytes: bytes = field(repr=False)
    stderr_bytes: bytes = field(repr=False)
    output_bytes: bytes = field(repr=False)
    truncated: bool = False

    @property
    def ok(self) -> bool:
        """Whether the command ended with status 0."""
        return self.exit_code == 0

    @property
    def stdout(self) -> str:
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        return self.stderr_bytes.decode(errors="replace")

    @property
    def output(self) -> str:
        return self.output_bytes.decode(errors="replace")

    def check(self, command: str) -> ExecResult:
        """This result if it is `ok`. Raises `CommandTimeout` or `CommandFailed` with the end of standard error."""
        if self.ok:
            return self
        shown = command if len(command) <= _SHOWN_COMMAND_CHARS else command[:_SHOWN_COMMAND_CHARS] + "…"
        detail = self.stderr[-_SHOWN_STDERR_CHARS:].rstrip()
        if self.timed_out:
            raise CommandTimeout(f"the command was killed by its timeout: {shown}", detail=detail)
        raise CommandFailed(f"the command ended with status {self.exit_code}: {shown}", detail=detail)


OnOutput = Callable[[bytes], None]


class Collector:
    """Gathers a command's output, bounded, and makes its result."""

    def __init__(self, on_stdout: OnOutput | None, on_stderr: OnOutput | None) -> None:
        self._callbacks = {FrameKind.STDOUT: on_stdout, FrameKind.STDERR: on_stderr}
        self._pieces: list[tuple[FrameKind, bytes]] = []
        self._kept = 0
        self._dropped = False

    def add(self, frame: Frame) -> None:
        """Take one frame of output."""
        if callback := self._callbacks[frame.kind]:
            callback(frame.payload)
        room = MAX_OUTPUT_BYTES - self._kept
        if len(frame.payload) > room:
            self._dropped = True
        piece = frame.payload[: max(room, 0)]
        if piece:
            self._pieces.append((frame.kind, piece))
            self._kept += len(piece)

    def result(self, end: CommandEnd) -> ExecResult:
        """The result of a command whose output was all taken."""
        return ExecResult(
            exit_code=end.exit_code,
            signal=end.signal,
            timed_out=end.timed_out,
            duration_s=end.duration_s,
            stdout_bytes=b"".join(piece for kind, piece in self._pieces if kind is FrameKind.STDOUT),
            stderr_bytes=b"".join(piece for kind, piece in self._pieces if kind is FrameKind.STDERR),
            output_bytes=b"".join(piece for _, piece in self._pieces),
            truncated=self._dropped,
        )
