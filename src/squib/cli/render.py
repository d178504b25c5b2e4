"""Print results, errors and notes.

Results go to standard output: tables (by rich on a terminal, as aligned text without colours otherwise), or JSON with
``--json``. Everything else goes to standard error, so that results can be piped:

- an error is ``squib: <message>``, its detail if there is one, and ``hint: <command to type>``; with ``--json``, one
  line of ``{"error": {"code", "message", "hint", "detail"}}``, and standard output stays empty;
- notes and progress, which ``--json`` turns off.

Names, reasons and messages may come from a guest, so control characters are never printed to a terminal.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from pydantic import BaseModel

    from squib.errors import SquibError

_LINE_END = re.compile("(?<!\r)\r+\n")  # each run of CR is looked at once, however long
_KEPT_CONTROLS = "\n\t"
_CONTROL_PICTURES = 0x2400
_DELETE, _PICTURE_OF_DELETE = 0x7F, 0x2421
_GAP = "   "


@dataclass(frozen=True)
class Column:
    """A column of a table, aligned to the ``right`` for numbers."""

    title: str
    right: bool = False


@dataclass(frozen=True)
class Output:
    """Prints to standard output and standard error.

    ``json`` and ``verbose`` are the global flags.
    """

    json: bool = False
    verbose: bool = False

    def data(self, value: BaseModel | Mapping[str, object] | Sequence[BaseModel | Mapping[str, object]]) -> None:
        """Print JSON, indented, because people read it too."""
        plain = _plain(value) if not isinstance(value, Sequence) else [_plain(item) for item in value]
        _print(json.dumps(plain, indent=2), sys.stdout)

    def line(self, text: str) -> None:
        """Print one line of a result."""
        _print(text, sys.stdout)

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
        """Print a table; without ``rows``, only its heading."""
        if sys.stdout.isatty():
            _rich_table(columns, rows)
        else:
            _print(plain_table(columns, rows), sys.stdout)

    def note(self, text: str) -> None:
        """Print a message that is not part of the result.

        ``--json`` turns it off.
        """
        if not self.json:
            _print(f"squib: {text}", sys.stderr)

    def detail(self, text: str) -> None:
        """Print a note if ``--verbose`` is given."""
        if self.verbose:
            self.note(text)

    def error(self, error: SquibError) -> None:
        """Print an error."""
        if self.json:
            from squib.protocol.errors import to_wire

            _print(json.dumps({"error": to_wire(error)}), sys.stderr)
            return
        hint = f"hint: {error.hint}" if error.hint else ""
        _print("\n".join(part for part in (f"squib: {error.message}", error.detail, hint) if part), sys.stderr)


def printable(text: str) -> str:
    """Replace control characters, except newline and tab, by visible ones."""
    return "".join(
        char if char.isprintable() or char in _KEPT_CONTROLS else _visible(ord(char))
        for char in _LINE_END.sub("\n", text)
    )


def _visible(code: int) -> str:
    if code < ord(" "):
        return chr(_CONTROL_PICTURES + code)
    return chr(_PICTURE_OF_DELETE) if code == _DELETE else "\ufffd"


def plain_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    """Format a table as aligned text."""
    lines = [[column.title for column in columns], *([_one_line(cell) for cell in row] for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return "\n".join(
        _GAP.join(
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ).rstrip()
        for line in lines
    )


def _one_line(cell: str) -> str:
    return printable(cell).replace("\n", " ").replace("\t", " ")


def _rich_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, len(_GAP), 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column.title, justify="right" if column.right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_one_line(cell), style=STYLES.get(cell, "")) for cell in row))
    Console(highlight=False).print(table)


STYLES = {
    "running": "green",
    "error": "red",
    "stopped": "dim",
    "created": "dim",
    "ok": "green",
    "warn": "yellow",
    "fail": "bold red",
}
"""Colours of cells with these words."""


def _plain(value: BaseModel | Mapping[str, object]) -> object:
    return value if isinstance(value, Mapping) else value.model_dump(mode="json")


def _print(text: str, stream: TextIO) -> None:
    if stream.isatty():
        text = printable(text)
    stream.write(text.encode("utf-8", "replace").decode() + "\n")
    stream.flush()
