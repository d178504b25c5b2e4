"""Format results as a table for a README, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from bench.figures import Results, Summary
from bench.machine import Machine

_HEADING = ("figure", "median", "min", "max", "runs", "must be", "")
_MARKS = {True: "ok", False: "missed", None: ""}
_NUMBERS = range(1, 5)


def as_table(machine: Machine, summaries: Sequence[Summary]) -> str:
    """Return a Markdown table that is aligned as text too."""
    rows = [_HEADING, *map(_row, summaries)]
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * (width - 1) + ":" if at in _NUMBERS else "-" * width for at, width in enumerate(widths)]
    lines = [_line(rows[0], widths), _line(rule, widths), *(_line(row, widths) for row in rows[1:])]
    return "\n".join(("", machine.describe(), "", *lines))


def _row(summary: Summary) -> tuple[str, ...]:
    figure = summary.figure
    amounts = (summary.median, summary.minimum, summary.maximum)
    claim, mark = figure.claim(), _MARKS[summary.reached]
    return (figure.title, *map(figure.unit.show, amounts), str(summary.count), claim, mark)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    aligned = (
        cell.rjust(width) if at in _NUMBERS else cell.ljust(width)
        for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return f"| {' | '.join(aligned)} |"


def as_json(machine: Machine, summaries: Sequence[Summary], results: Results) -> str:
    """Return all figures with all their samples, each in its unit."""
    figures = [
        {
            "name": summary.figure.name,
            "title": summary.figure.title.strip(),
            "unit": summary.figure.unit.symbol,
            "median": summary.figure.unit.of(summary.median),
            "min": summary.figure.unit.of(summary.minimum),
            "max": summary.figure.unit.of(summary.maximum),
            "at_most": summary.figure.at_most,
            "at_least": summary.figure.at_least,
            "reached": summary.reached,
            "samples": [summary.figure.unit.of(amount) for amount in results.samples[summary.figure.name]],
        }
        for summary in summaries
    ]
    return json.dumps({"machine": asdict(machine), "figures": figures}, indent=2)
