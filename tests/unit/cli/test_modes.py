"""What programs leave behind on a terminal, and what they ask it."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squib.cli.terminal.modes import ModeTracker, ReplayFilter

PLAIN = b"\x1b[0m\x1b(B\x0f"


def undo_of(*pieces: bytes) -> bytes:
    tracker = ModeTracker()
    for piece in pieces:
        tracker.feed(piece)
    return tracker.undo().removesuffix(PLAIN)


@pytest.mark.parametrize(
    ("output", "undo"),
    [
        (b"", b""),
        (b"plain \x1b[1;31mred\x1b[m \x1b[2J\x1b[H", b""),
        (b"\x1b[?1049h", b"\x1b[?1049l"),
        (b"\x1b[?25l", b"\x1b[?25h"),
        (b"\x1b[?25l\x1b[?25h", b""),
        (b"\x1b[?1049h\x1b[?1;1002;1006h\x1b[?2004h", b"\x1b[?1l\x1b[?1002l\x1b[?1006l\x1b[?2004l\x1b[?1049l"),
        (b"\x1b[?1002;1006h\x1b[?1002l", b"\x1b[?1006l"),
        (b"\x1b=", b"\x1b>"),
        (b"\x1b=\x1b>", b""),
        (b"\x1b[>4;2m", b"\x1b[>4m"),
        (b"\x1b[>4;2m\x1b[>4;m\x1b[>4m", b""),
        (b"\x1b[>1u", b"\x1b[<u"),
        (b"\x1b[?1049h\x1b[?25l\x1b=\x1bc", b""),
        (b"\x1b[2;20r", b"\x1b7\x1b[r\x1b8"),
        (b"\x1b[2;20r\x1b[r", b""),
        (b"\x1b[?99999999h\x1b[?12h", b""),
    ],
)
def test_what_was_changed_is_undone_and_nothing_else(output: bytes, undo: bytes) -> None:
    assert undo_of(output) == undo
    assert undo_of(*(bytes([byte]) for byte in output)) == undo


def test_vi_is_undone() -> None:
    begin = b"\x1b[?1049h\x1b[>4;2m\x1b[?1h\x1b=\x1b[?2004h\x1b[?1004h\x1b[1;24r\x1b[?12h\x1b[?12l\x1b[22;2t"
    end = b"\x1b[r\x1b[?1004l\x1b[?2004l\x1b[?1l\x1b>\x1b[?1049l\x1b[23;0;0t\x1b[?25h\x1b[>4;m"
    assert undo_of(begin) == b"\x1b7\x1b[r\x1b8\x1b>\x1b[>4m\x1b[?1l\x1b[?1004l\x1b[?2004l\x1b[?1049l"
    assert undo_of(begin, end) == b""


QUERIES = [
    b"\x1b[c", b"\x1b[>c", b"\x1b[=0c", b"\x1b[6n", b"\x1b[?6n", b"\x1b[>q", b"\x1b[?2026$p", b"\x1b[18t", b"\x1b[?u",
    b"\x1bP+q436f\x1b\\", b"\x1bP$qm\x1b\\", b"\x1b]10;?\x07", b"\x1b]4;12;?\x1b\\", b"\x1b]52;c;?\x07",
]  # fmt: skip
OTHERS = [
    b"text c n q", b"\r\n", b"\x1b[31m", b"\x1b[2J", b"\x1b[?25l", b"\x1b[?1049h", b"\x1b[10;20H", b"\x1b]0;title\x07",
    b"\x1b[22;2t", b"\x1b(B", b"\x1b=", b"\x1b[>4;2m", b"\xff\x00", b"\x1bPq#0~\x1b\\", b"\x1b]10;red\x07",
]  # fmt: skip


@given(
    st.lists(st.sampled_from(QUERIES + OTHERS), max_size=12),
    st.lists(st.integers(0, 150), max_size=8),
)
def test_a_replay_holds_no_queries_however_it_is_cut(parts: list[bytes], cuts: list[int]) -> None:
    output = b"".join(parts)
    marks = [0, *sorted(min(cut, len(output)) for cut in cuts), len(output)]
    replay = ReplayFilter()
    shown = b"".join(replay.feed(output[start:end]) for start, end in pairwise(marks))
    assert shown + replay.end() == b"".join(part for part in parts if part not in QUERIES)


@given(st.binary(max_size=600))
def test_what_asks_nothing_passes_whole(output: bytes) -> None:
    replay = ReplayFilter()
    shown = replay.feed(output) + replay.end()
    if b"\x1b" not in output:
        assert shown == output
    assert len(shown) <= len(output)
