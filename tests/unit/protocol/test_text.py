"""Text from a guest, made safe to show."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squib.protocol.text import printable, printable_lines

HOSTILE = "no\r\n2026 ERROR all is lost\x1b[2J\x1b]0;title\x07\x9b31m\u202ereversed\u2066\u2028 \udcff\x7f"


def test_one_line() -> None:
    assert printable("  a \t\r\n b\x1b[1;31mc\x1b[0m ") == "a bc"
    assert printable(HOSTILE) == "no 2026 ERROR all is lost�]0;title��reversed� ��"
    assert printable("x" * 3000) == "x" * 2000
    assert printable("é ü 漢字") == "é ü 漢字"


def test_several_lines() -> None:
    assert printable_lines("[    1.0] boot\r\n\tat 0\x1b[K\n") == "[    1.0] boot\n at 0\n"
    assert printable_lines("a\rb\x0bc\u2028d") == "a�b�c�d"


@pytest.mark.parametrize("text", ["\x1b[" * 50_000, "\x1b[" + "0" * 50_000, "\x1b[" + " " * 50_000, "\r" * 50_000])
def test_no_text_takes_long(text: str) -> None:
    assert printable_lines(text).isprintable()


@given(st.text())
def test_any_text_becomes_printable(text: str) -> None:
    assert printable(text).isprintable()
    assert all(line.isprintable() for line in printable_lines(text).split("\n"))
