"""The keys that detach."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squib.cli.terminal.keys import DEFAULT_DETACH_KEYS, KeyMatcher, parse_keys
from squib.errors import InvalidArgument


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        (DEFAULT_DETACH_KEYS, b"\x1d"),
        ("ctrl-p,ctrl-q", b"\x10\x11"),
        ("Ctrl-A,d", b"\x01d"),
        ("ctrl-@,ctrl-[,ctrl-\\,ctrl-^,ctrl-_", b"\x00\x1b\x1c\x1e\x1f"),
        ("~,.", b"~."),
        ("", b""),
    ],
)
def test_keys_are_written_as_for_docker(text: str, keys: bytes) -> None:
    assert parse_keys(text, flag="--detach-keys").sequence == keys


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-1", "ctrl-ab", "ab", ",", "a,", "ü", "\x1d", "alt-x"])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="--detach-keys: "):
        parse_keys(text, flag="--detach-keys")


def feed_all(matcher: KeyMatcher, pieces: list[bytes]) -> tuple[bytes, bool]:
    passed = b""
    for piece in pieces:
        some, found = matcher.feed(piece)
        passed += some
        if found:
            return passed, True
    return passed, False


few_bytes = st.binary(max_size=1).map(lambda one: bytes(byte % 3 for byte in one))
texts = st.lists(few_bytes, max_size=30).map(b"".join)
cuts = st.lists(st.integers(0, 30), max_size=6)


@given(texts.filter(bool), texts, cuts)
def test_only_the_sequence_is_taken_out_however_typing_is_cut(sequence: bytes, typed: bytes, cuts: list[int]) -> None:
    marks = [0, *sorted(min(cut, len(typed)) for cut in cuts), len(typed)]
    pieces = [typed[start:end] for start, end in pairwise(marks)]
    passed, found = feed_all(KeyMatcher(sequence), pieces)
    before, separator, _ = typed.partition(sequence)
    assert found is bool(separator)
    if found:
        assert passed == before
    else:
        held = typed.removeprefix(passed)
        assert typed == passed + held and sequence.startswith(held)


@given(st.binary(), st.binary(min_size=1, max_size=3))
def test_nothing_is_held_but_the_beginning_of_the_sequence(typed: bytes, sequence: bytes) -> None:
    passed, found = KeyMatcher(sequence).feed(typed)
    if not found:
        held = len(typed) - len(passed)
        assert held < len(sequence) and typed[len(passed) :] == sequence[:held]


@given(st.binary())
def test_without_a_sequence_all_passes(typed: bytes) -> None:
    assert KeyMatcher(b"").feed(typed) == (typed, False)


def test_a_beginning_that_does_not_go_on_is_passed_on_whole() -> None:
    matcher = KeyMatcher(b"\x10\x10\x11")
    assert matcher.feed(b"\x10") == (b"", False)
    assert matcher.feed(b"\x10") == (b"", False)
    assert matcher.feed(b"\x10") == (b"\x10", False)
    assert matcher.feed(b"x") == (b"\x10\x10x", False)
