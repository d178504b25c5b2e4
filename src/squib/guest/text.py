"""Text from a guest, made safe for error messages and logs."""

from __future__ import annotations

_MAX_CHARS = 2000
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def printable(text: str, max_chars: int = _MAX_CHARS) -> str:
    """Return ``text`` on one line: runs of whitespace become a space, other unprintable characters are replaced.

    A guest can otherwise forge lines of a log, or send control sequences to the terminal that shows a message.
    """
    line = " ".join(text[:max_chars].split())
    return "".join(char if char.isprintable() else _REPLACEMENT for char in line)
