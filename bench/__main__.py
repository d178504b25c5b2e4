"""``python -m bench``: measure, and print a table or JSON."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from bench.figures import FIGURES, Results
from bench.home import bench_home
from bench.machine import Machine, look_at_machine
from bench.measure import GROUPS, prepare
from bench.report import as_json, as_table
from bench.run import Bench, Group
from squib import SquibError
from squib.cli.render import Output

_DEFAULT_RUNS = 10


def main() -> int:
    """Run this process's command line; return its status."""
    options = _parser().parse_args()
    names = options.only or [figure.name for figure in FIGURES]
    results = Results()
    try:
        with _ended_by_sigterm(), bench_home() as home:
            machine = asyncio.run(_measure(Bench(home, options.runs, results, _ignore), names))
    except KeyboardInterrupt:
        _tell("stopped; nothing is left behind\n")
        return 128 + signal.SIGINT
    except SquibError as error:
        Output(json=options.json).error(error)
        return 1
    summaries = results.summaries(names)
    print(as_json(machine, summaries, results) if options.json else as_table(machine, summaries))
    return int(options.check and any(summary.reached is False for summary in summaries))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure squib on this machine, in a state directory of its own. Nothing is left behind.",
        epilog="Figures: " + ", ".join(figure.name for figure in FIGURES),
    )
    parser.add_argument("--runs", type=_count, default=_DEFAULT_RUNS, help="how often to measure (%(default)s)")
    parser.add_argument(
        "--only",
        metavar="NAME",
        action="append",
        choices=[figure.name for figure in FIGURES],
        help="measure only this figure; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print JSON with every sample")
    parser.add_argument("--check", action="store_true", help="end with status 1 if a median is not what it must be")
    return parser


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


async def _measure(bench: Bench, names: Collection[str]) -> Machine:
    machine = await look_at_machine(bench.home)
    await prepare(bench)
    for group in GROUPS:
        if not set(group.figures).isdisjoint(names):
            await group.measure(_with_progress(bench, group))
    _tell("")
    return machine


def _with_progress(bench: Bench, group: Group) -> Bench:
    def on_run(run: int, runs: int) -> None:
        if sys.stderr.isatty():
            _tell(f"{group.title}: {run + 1} of {runs}")
        elif run == 0:
            _tell(f"measuring {group.title}\n")

    return Bench(bench.home, bench.runs, bench.results, on_run)


def _ignore(run: int, runs: int) -> None:
    pass


def _tell(text: str) -> None:
    """Show ``text`` on standard error; on a terminal, replace the line."""
    clear = "\r\x1b[K" if sys.stderr.isatty() else ""
    print(f"{clear}{text}", end="", file=sys.stderr, flush=True)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Handle SIGTERM and SIGHUP in the block like Ctrl-C, which cleans up."""

    def interrupt(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    former = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
