"""Parse detach keys, and find them in typed input."""

from __future__ import annotations

from dataclasses import dataclass

from squib.errors import InvalidArgument

DEFAULT_DETACH_KEYS = "ctrl-]"
_CTRL = "ctrl-"
_CONTROLS = {chr(code + 0x40): code for code in range(0x20)} | {chr(code + 0x60): code for code in range(1, 27)}
"""The byte for each key after ``ctrl-``: ``a`` and ``A`` are 1, ``]`` is 0x1d."""


@dataclass(frozen=True)
class DetachKeys:
    """Detach keys: the flag's text, and the bytes that a terminal sends."""

    text: str = ""
    sequence: bytes = b""


def parse_keys(text: str, *, flag: str) -> DetachKeys:
    """Parse keys in Docker's format: ``ctrl-]``, ``ctrl-p,ctrl-q``, ``~,.``.

    An empty text means no keys.

    Raises `InvalidArgument`, which names ``flag``.
    """
    return DetachKeys(text, bytes(_parse_key(key, text, flag) for key in text.split(",")) if text else b"")


def _parse_key(key: str, text: str, flag: str) -> int:
    lowered = key.lower()
    if lowered.startswith(_CTRL) and lowered[len(_CTRL) :] in _CONTROLS:
        return _CONTROLS[lowered[len(_CTRL) :]]
    if len(key) == 1 and key.isascii() and key.isprintable():
        return ord(key)
    raise InvalidArgument(
        f"{flag}: invalid key {key!r} in {text!r}",
        hint=f"use {flag} 'ctrl-p,ctrl-q': characters, or ctrl- and a letter or one of @[\\]^_; '' disables them",
    )


class KeyMatcher:
    """Finds ``sequence`` in typed input that arrives in pieces.

    An empty sequence is never found.

    Input that may be the start of the sequence is held back until the next byte decides.
    """

    def __init__(self, sequence: bytes) -> None:
        self._sequence = sequence
        self._held = b""

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """Return the input to forward, and whether the sequence was found.

        Input after the sequence is dropped.
        """
        if not self._sequence:
            return data, False
        text = self._held + data
        found = text.find(self._sequence)
        if found >= 0:
            self._held = b""
            return text[:found], True
        split = len(text) - self._prefix_length(text)
        self._held = text[split:]
        return text[:split], False

    def _prefix_length(self, text: bytes) -> int:
        """Return the length of an unfinished match at the end of ``text``."""
        longest = min(len(text), len(self._sequence) - 1)
        return next((length for length in range(longest, 0, -1) if self._sequence.startswith(text[-length:])), 0)
