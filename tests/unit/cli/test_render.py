"""Tables and text, on a terminal and elsewhere."""

import io
from collections.abc import Callable

import pytest

from squib.cli.progress import steps
from squib.cli.render import Column, Output, plain_table, printable
from squib.errors import NotFound
from squib.models import Progress

COLUMNS = (Column("NAME"), Column("SIZE", right=True))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Terminal]:
    """Standard output and error become one terminal when this is called."""

    def begin() -> Terminal:
        terminal = Terminal()
        monkeypatch.setattr("sys.stdout", terminal)
        monkeypatch.setattr("sys.stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("NO_COLOR", raising=False)
        return terminal

    return begin


def test_plain_tables_are_aligned() -> None:
    rows = [["a", "1"], ["long name", "12345"]]
    assert plain_table(COLUMNS, rows) == "NAME         SIZE\na               1\nlong name   12345"


def test_a_cell_is_one_line() -> None:
    assert plain_table((Column("A"),), [["x\ny\tz"]]) == "A\nx y z"


def test_a_terminal_gets_a_table_with_styles(on_terminal: Callable[[], Terminal]) -> None:
    terminal = on_terminal()
    Output().table((Column("STATE"), Column("REASON")), [["running", "\x1b]0;x\x07[bold]"]])
    text = terminal.getvalue()
    assert "\x1b[32mrunning" in text
    assert "␛]0;x␇[bold]" in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ä €\n\tx", "plain ä €\n\tx"),
        ("\x1b[2J\x07\x00", "␛[2J␇␀"),
        ("a\r\nb\r\r\nc\rd", "a\nb\nc␍d"),
        ("\x7f\x9b31m\u202e", "␡�31m�"),
    ],
)
def test_what_would_steer_a_terminal_is_made_visible(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_no_text_takes_long() -> None:
    assert printable("\r" * 300_000) == "␍" * 300_000


def test_an_error_cannot_steer_the_terminal(on_terminal: Callable[[], Terminal]) -> None:
    terminal = on_terminal()
    Output().error(NotFound("\x1b[2Jgone", hint="\x9b31m"))
    assert terminal.getvalue() == "squib: ␛[2Jgone\nhint: �31m\n"


def test_notes_are_silent_with_json(capsys: pytest.CaptureFixture[str]) -> None:
    Output(json=True, verbose=True).note("x")
    Output(json=True, verbose=True).detail("x")
    Output().detail("x")
    assert capsys.readouterr() == ("", "")


def test_steps_are_sparse_lines_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with steps(Output(), "image base") as report:
        for done in range(50):
            report(Progress(step="unpack", done=done, total=50, unit="files"))
        report(Progress(step="digest"))
    assert capsys.readouterr().err == "squib: image base: unpack 0 of 50 files\nsquib: image base: digest\n"


def test_steps_are_a_bar_on_a_terminal(on_terminal: Callable[[], Terminal]) -> None:
    terminal = on_terminal()
    with steps(Output(), "image base") as report:
        report(Progress(step="unpack", done=1 << 20, total=2 << 20, unit="bytes"))
    assert "image base: unpack 1 MiB of 2 MiB" in terminal.getvalue()


def test_steps_are_silent_with_json(capsys: pytest.CaptureFixture[str]) -> None:
    with steps(Output(json=True), "image base") as report:
        report(Progress(step="unpack"))
    assert capsys.readouterr() == ("", "")
