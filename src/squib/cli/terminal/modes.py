"""Track the terminal modes that a program in a VM changes, to reset them."""

from __future__ import annotations

import re

_SEQUENCE = re.compile(
    rb"\x1b\[\?(?P<modes>[0-9;]{1,64})(?P<switch>[hl])"  # DECSET, DECRST
    rb"|\x1b(?P<keypad>[=>])"  # DECKPAM, DECKPNM
    rb"|\x1b\[>4(?P<modify_keys>[0-9;]{0,8})m"  # xterm's modifyOtherKeys
    rb"|\x1b\[>[0-9;]{0,16}(?P<kitty_keys>u)"  # kitty's keyboard protocol
    rb"|\x1b\[(?P<margins>[0-9;]{0,16})r"  # DECSTBM
    rb"|\x1b(?P<reset>c|\[!p)"  # RIS, DECSTR
)
_UNFINISHED = re.compile(rb"\x1b(?:\[[?>!]?[0-9;]{0,64})?\Z")
_ON_AT_FIRST = {7, 25}
"""Line wrapping; the cursor."""
_OFF_AT_FIRST = {1, 5, 6, 9, 47, 66, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1015, 1016, 1047, 1049, 2004, 2026}
"""Cursor keys, reverse video, origin, mouse, alternate screens, keypad, focus, bracketed paste, synchronised output."""
_ALTERNATE_SCREENS = (1049, 1047, 47)
_KNOWN = _ON_AT_FIRST | _OFF_AT_FIRST


class ModeTracker:
    """A record of the terminal modes that a program's output has changed."""

    def __init__(self) -> None:
        self._changed: set[int] = set()
        self._others: set[bytes] = set()
        self._tail = b""

    def feed(self, data: bytes) -> None:
        """Process the next piece of output; it may end inside a sequence."""
        text = self._tail + data
        for found in _SEQUENCE.finditer(text):
            self._take(found)
        unfinished = _UNFINISHED.search(text, max(0, len(text) - 80))
        self._tail = unfinished[0] if unfinished else b""

    def _take(self, found: re.Match[bytes]) -> None:
        if found["reset"]:
            self._changed.clear()
            self._others.clear()
        elif found["keypad"]:
            self._switch(b"\x1b>", found["keypad"] == b"=")
        elif found["modify_keys"] is not None:
            self._switch(b"\x1b[>4m", found["modify_keys"] not in (b"", b";", b";0"))
        elif found["kitty_keys"]:
            self._switch(b"\x1b[<u", True)
        elif found["margins"] is not None:
            self._switch(b"\x1b7\x1b[r\x1b8", found["margins"] not in (b"", b";"))  # it moves the cursor
        else:
            for mode in {int(text) for text in found["modes"].split(b";") if text} & _KNOWN:
                if (found["switch"] == b"h") == (mode in _OFF_AT_FIRST):
                    self._changed.add(mode)
                else:
                    self._changed.discard(mode)

    def _switch(self, undo: bytes, on: bool) -> None:
        if on:
            self._others.add(undo)
        else:
            self._others.discard(undo)

    def undo(self) -> bytes:
        """Return sequences that reset modes and character attributes."""
        last = [mode for mode in _ALTERNATE_SCREENS if mode in self._changed]
        order = sorted(self._changed - set(last)) + last
        modes = b"".join(b"\x1b[?%d%c" % (mode, b"l"[0] if mode in _OFF_AT_FIRST else b"h"[0]) for mode in order)
        return b"".join(sorted(self._others)) + modes + b"\x1b[0m\x1b(B\x0f"


_QUERY = re.compile(
    rb"\x1b\[[>=]?[0-9]{0,4}c"  # device attributes
    rb"|\x1b\[\??[0-9]{1,4}n"  # status, cursor position
    rb"|\x1b\[>[0-9]{0,4}q"  # name and version
    rb"|\x1b\[\??[0-9]{1,5}\$p"  # whether a mode is on
    rb"|\x1b\[(?:1[1-9]|2[01])(?:;[0-9]{1,4})?t"  # the window
    rb"|\x1b\[\?u"  # kitty's keyboard protocol
    rb"|\x1bP[+$]q[^\x1b]{0,256}\x1b\\"  # termcap, settings
    rb"|\x1b\](?:4;[0-9]{1,3}|1[0-9]|52;[a-z]?);\?(?:\x07|\x1b\\)"  # colours, clipboard
)
_MAX_QUERY_BYTES = 270
_MAYBE_QUERY = re.compile(
    rb"\x1b(?:\[[>=?]?[0-9;]{0,9}\$?|P(?:[+$](?:q[^\x1b]{0,256}\x1b?)?)?|\](?:[0-9]{1,2}[0-9a-z;?]{0,8}\x1b?)?)?\Z"
)


class ReplayFilter:
    """Removes queries that a terminal would answer from replayed output.

    The program no longer waits for the answers; it would read them as typed input.
    """

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Return the next piece of output without queries.

        A possible start of a query is held back.
        """
        text = _QUERY.sub(b"", self._held + data)
        begun = _MAYBE_QUERY.search(text, max(0, len(text) - _MAX_QUERY_BYTES))
        split = begun.start() if begun else len(text)
        self._held = text[split:]
        return text[:split]

    def end(self) -> bytes:
        """End the replay: return the output that is still held back."""
        held, self._held = self._held, b""
        return held
