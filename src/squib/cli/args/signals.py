"""Parse signals as people type them."""

from __future__ import annotations

import signal

from squib.errors import InvalidArgument

MAX_SIGNAL = 64


def parse_signal(text: str, *, flag: str) -> int:
    """Parse ``TERM``, ``SIGTERM``, ``sigterm`` or ``15``.

    Raises `InvalidArgument`, which names ``flag``.
    """
    if text.isascii() and text.isdecimal() and 1 <= int(text) <= MAX_SIGNAL:
        return int(text)
    name = text.upper()
    found = signal.Signals.__members__.get(name if name.startswith("SIG") else f"SIG{name}")
    if found is None:
        raise InvalidArgument(
            f"{flag}: invalid signal {text!r}",
            hint=f"use {flag} TERM, {flag} INT or a number from 1 to {MAX_SIGNAL}",
        )
    return int(found)
