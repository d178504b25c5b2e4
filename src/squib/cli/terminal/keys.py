"""The keys that detach a terminal from its session."""

from __future__ import annotations

from dataclasses import dataclass

from squib.errors import InvalidArgument

DEFAULT_DETACH_KEYS = "ctrl-]"
_CTRL = "ctrl-"
_CONTROLS = {chr(code + 0x40): code for code in range(0x20)} | {chr(code + 0x60): code for code in range(1, 27)}
"""What stands after ``ctrl-``, and its byte: ``a`` and ``A`` are 1, ``]`` is 0x1d."""


@dataclass(frozen=True)
class DetachKeys:
    """Keys as they were typed in a flag, and the bytes that a terminal sends for them."""

    text: str = ""
    sequence: bytes = b""


def parse_keys(text: str, *, flag: str) -> DetachKeys:
    """Keys as typed for docker: ``ctrl-]``, ``ctrl-p,ctrl-q``, ``~,.``; the empty text is none.

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
        f"{flag}: {key!r} in {text!r} is no key",
        hint=f"write {flag} 'ctrl-p,ctrl-q': single characters, or ctrl- and a letter or one of @[\\]^_; '' for none",
    )


class KeyMatcher:
    """Finds ``sequence`` in what is typed, however it comes in pieces. An empty sequence is never found.

    What may be its beginning is held until the next byte tells; nothing else is.
    """

    def __init__(self, sequence: bytes) -> None:
        self._sequence = sequence
        self._held = b""

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """What is to be passed on of ``data`` and what was held, and whether the sequence is complete with it.

        What comes after the sequence is dropped.
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
        """How much of the end of ``text`` may be the beginning of the sequence."""
        longest = min(len(text), len(self._sequence) - 1)
        return next((length for length in range(longest, 0, -1) if self._sequence.startswith(text[-length:])), 0)
