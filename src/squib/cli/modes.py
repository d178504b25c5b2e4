"""What programs in a VM have made of the terminal, and how to undo it when they cannot any more."""

from __future__ import annotations

import re

_SEQUENCE = re.compile(
    rb"\x1b\[\?(?P<modes>[0-9;]{1,64})(?P<switch>[hl])"  # DECSET, DECRST
    rb"|\x1b(?P<keypad>[=>])"  # DECKPAM, DECKPNM
    rb"|\x1b\[>4(?P<modify_keys>[0-9;]{0,8})m"  # xterm's modifyOtherKeys
    rb"|\x1b\[>[0-9;]{0,16}(?P<kitty_keys>u)"  # kitty's keyboard protocol
    rb"|\x1b(?P<reset>c|\[!p)"  # RIS, DECSTR
)
_UNFINISHED = re.compile(rb"\x1b(?:\[[?>!]?[0-9;]{0,64})?\Z")
_ON_AT_FIRST = {7, 25}
"""Wrapping at the end of a line; the cursor."""
_OFF_AT_FIRST = {1, 5, 6, 9, 47, 66, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1015, 1016, 1047, 1049, 2004, 2026}
"""Cursor keys, reverse video, origin, mouse, alternate screens, keypad, focus, bracketed paste, held updates."""
_ALTERNATE_SCREENS = (1049, 1047, 47)
_KNOWN = _ON_AT_FIRST | _OFF_AT_FIRST


class ModeTracker:
    """Follows a terminal's output and knows which modes are not as they were at first."""

    def __init__(self) -> None:
        self._changed: set[int] = set()
        self._keys: set[bytes] = set()
        self._tail = b""

    def feed(self, data: bytes) -> None:
        """Look at the next piece of output, which may end inside a sequence."""
        text = self._tail + data
        for found in _SEQUENCE.finditer(text):
            self._take(found)
        unfinished = _UNFINISHED.search(text, max(0, len(text) - 80))
        self._tail = unfinished[0] if unfinished else b""

    def _take(self, found: re.Match[bytes]) -> None:
        if found["reset"]:
            self._changed.clear()
            self._keys.clear()
        elif found["keypad"]:
            self._switch_keys(b"\x1b>", found["keypad"] == b"=")
        elif found["modify_keys"] is not None:
            self._switch_keys(b"\x1b[>4m", found["modify_keys"] not in (b"", b";0"))
        elif found["kitty_keys"]:
            self._keys.add(b"\x1b[<u")
        else:
            for mode in {int(text) for text in found["modes"].split(b";") if text} & _KNOWN:
                if (found["switch"] == b"h") == (mode in _OFF_AT_FIRST):
                    self._changed.add(mode)
                else:
                    self._changed.discard(mode)

    def _switch_keys(self, undo: bytes, on: bool) -> None:
        if on:
            self._keys.add(undo)
        else:
            self._keys.discard(undo)

    def undo(self) -> bytes:
        """What puts the terminal back to how it was, with plain characters, and with the cursor on a line of its own."""
        last = [mode for mode in _ALTERNATE_SCREENS if mode in self._changed]
        order = sorted(self._changed - set(last)) + last
        modes = b"".join(b"\x1b[?%d%c" % (mode, b"l"[0] if mode in _OFF_AT_FIRST else b"h"[0]) for mode in order)
        return b"".join(sorted(self._keys)) + modes + b"\x1b[0m\x1b(B\x0f"


_QUERY = re.compile(
    rb"\x1b\[[>=]?[0-9]{0,4}c"  # device attributes
    rb"|\x1b\[\??[0-9]{1,4}n"  # status, cursor position
    rb"|\x1b\[>[0-9]{0,4}q"  # name and version
    rb"|\x1b\[\??[0-9]{1,5}\$p"  # mode
    rb"|\x1b\[(?:1[1-9]|2[01])(?:;[0-9]{1,4})?t"  # window
    rb"|\x1b\[\?u"  # kitty's keyboard protocol
    rb"|\x1bP[+$]q[^\x1b]{0,256}(?:\x1b\\|\x9c)"  # termcap, settings
    rb"|\x1b\](?:4;[0-9]{1,3}|1[0-9]|52;[a-z]?);\?(?:\x07|\x1b\\)"  # colours, clipboard
)


def without_queries(data: bytes) -> bytes:
    """Output without what a terminal answers to. Of what was shown long ago, nobody waits for the answers any more; the
    program that reads the terminal now would take them for typed.
    """
    return _QUERY.sub(b"", data)
