"""Signals as people type them."""

import pytest

from squib.cli.args.signals import parse_signal
from squib.errors import InvalidArgument


@pytest.mark.parametrize(
    ("text", "number"), [("KILL", 9), ("SIGTERM", 15), ("int", 2), ("sighup", 1), ("10", 10), ("64", 64), ("CHLD", 17)]
)
def test_a_signal_is_a_name_or_a_number(text: str, number: int) -> None:
    assert parse_signal(text, flag="--signal") == number


@pytest.mark.parametrize("text", ["", "0", "65", "-9", "SIG", "BOGUS", "9.0", "٣", "SIGSIGTERM", "_DFL"])
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="--signal: "):
        parse_signal(text, flag="--signal")
