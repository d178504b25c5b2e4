"""Text from a guest, made safe for error messages, logs and terminals.

A guest can otherwise forge lines of a log, send control sequences to the terminal that shows a message, or reverse the
order of its characters.
"""

from __future__ import annotations

import re

_MAX_CHARS = 2000
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_CONTROL_SEQUENCE = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]")
"""Colours, cursor movements and the like (ECMA-48). They are left out."""


def printable(text: str, max_chars: int = _MAX_CHARS) -> str:
    """Return ``text`` as one line without unprintable characters.

    Runs of whitespace become a space. Control sequences are removed, and other unprintable characters are replaced.
    """
    return _replaced(" ".join(_without_sequences(text[:max_chars]).split()))


def printable_lines(text: str) -> str:
    """Return the lines of ``text`` without unprintable characters.

    Tabs become spaces. Control sequences are removed, and other unprintable characters are replaced.
    """
    lines = _without_sequences(text).split("\n")
    return "\n".join(_replaced(line.rstrip("\r").replace("\t", " ")) for line in lines)


def _without_sequences(text: str) -> str:
    return _CONTROL_SEQUENCE.sub("", text)


def _replaced(text: str) -> str:
    return "".join(char if char.isprintable() else _REPLACEMENT for char in text)
