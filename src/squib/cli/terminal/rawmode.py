"""Raw mode for the terminal of this process, and its size and type."""

from __future__ import annotations

import contextlib
import os
import signal
import termios
from collections.abc import Iterator
from typing import Any

from squib.models import PtySize

_INPUT = (
    termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP | termios.INLCR | termios.IGNCR | termios.ICRNL
    | termios.IXON | termios.IXANY | termios.IXOFF
)  # fmt: skip
_LOCAL = termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN

_MAX_SIDE = 65_535
_COMMON_TYPES = (
    "ansi", "dumb", "linux", "rxvt", "screen", "screen-256color", "tmux", "tmux-256color", "vt100", "vt102", "vt220",
    "xterm", "xterm-256color",
)  # fmt: skip
"""Values of ``TERM`` that minimal images know (Debian's ncurses-base)."""

Modes = list[Any]
"""What `termios.tcgetattr` returns."""


class RawMode:
    """A context manager for raw mode on the terminal ``fd``.

    The terminal is always restored at the end. In raw mode, every byte passes unchanged in both directions: no echo, no
    line editing, no signals from keys and no flow control.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._before: Modes = termios.tcgetattr(fd)
        self._raw: Modes | None = None

    def __enter__(self) -> RawMode:
        self.enter()
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def enter(self) -> None:
        """Make the terminal raw.

        Call it again after a shell changed the terminal while this process was stopped.
        """
        termios.tcsetattr(self._fd, termios.TCSANOW, _made_raw(self._before))
        self._raw = termios.tcgetattr(self._fd)  # not every terminal accepts every flag

    def leave(self) -> None:
        """Restore the terminal.

        Never waits, ignores a closed terminal, and is idempotent.
        """
        raw, self._raw = self._raw, None
        if raw is None:
            return
        with contextlib.suppress(termios.error), _may_write_from_the_background():
            if self._in_background() and termios.tcgetattr(self._fd) != raw:
                return  # a shell has taken the terminal back and set its own modes
            termios.tcsetattr(self._fd, termios.TCSANOW, self._before)

    def _in_background(self) -> bool:
        try:
            return os.tcgetpgrp(self._fd) != os.getpgrp()
        except OSError:  # not the controlling terminal of this process
            return False


def _made_raw(modes: Modes) -> Modes:
    """Return raw modes: ``cfmakeraw(3)``, and no flow control of input."""
    iflag, oflag, cflag, lflag, ispeed, ospeed, characters = modes
    characters = list(characters)
    characters[termios.VMIN], characters[termios.VTIME] = 1, 0
    return [
        iflag & ~_INPUT,
        oflag & ~termios.OPOST,
        cflag & ~(termios.CSIZE | termios.PARENB) | termios.CS8,
        lflag & ~_LOCAL,
        ispeed,
        ospeed,
        characters,
    ]


@contextlib.contextmanager
def _may_write_from_the_background() -> Iterator[None]:
    """Block SIGTTOU, so that a background process may change its terminal."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def terminal_size(fd: int) -> PtySize:
    """Return the size of the terminal ``fd``; if unknown, 24 × 80."""
    try:
        cols, rows = os.get_terminal_size(fd)
    except OSError:
        cols = rows = 0
    return PtySize(rows=min(rows, _MAX_SIDE), cols=min(cols, _MAX_SIDE)) if rows and cols else PtySize()


def terminal_type() -> dict[str, str]:
    """Return ``TERM`` if every image is likely to know it, else nothing."""
    name = os.environ.get("TERM", "")
    return {"TERM": name} if name in _COMMON_TYPES else {}
