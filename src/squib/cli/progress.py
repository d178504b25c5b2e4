"""Show progress: bars on a terminal, else lines; nothing with ``--json``."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Protocol

from squib.cli.args.units import show_bytes
from squib.cli.render import Output, printable
from squib.models import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from squib.models import OnProgress

_QUIET_S = 1.0
_LINE_EVERY_S = 10.0
_THROTTLE_S = 0.1


class Reporter(Protocol):
    """Receives the progress of a build or a transfer."""

    def __call__(self, progress: Progress) -> None: ...


@contextlib.contextmanager
def steps(output: Output, title: str) -> Iterator[Reporter]:
    """Show the steps of a long operation named ``title``.

    Nothing is shown before the first step.
    """
    if output.json:
        yield lambda progress: None
    elif sys.stderr.isatty():
        with contextlib.ExitStack() as stack:
            yield _Bar(title, stack)
    else:
        yield _Lines(output, title)


def throttled(reporter: OnProgress) -> OnProgress:
    """Drop reports in the first second, then all but ten per second."""
    due = time.monotonic() + _QUIET_S

    def report(progress: Progress) -> None:
        nonlocal due
        now = time.monotonic()
        if now >= due:
            due = now + _THROTTLE_S
            reporter(progress)

    return report


@contextlib.asynccontextmanager
async def late_steps(output: Output, title: str, first: str = "waiting for the engine") -> AsyncIterator[Reporter]:
    """Show steps as `steps` does, but nothing in the first second.

    ``first`` is shown until a step is reported.
    """
    latest = Progress(step=first)
    due = False
    with steps(output, title) as show:

        def report(progress: Progress) -> None:
            nonlocal latest
            latest = progress
            if due:
                show(progress)

        def on_due() -> None:
            nonlocal due
            due = True
            show(latest)

        began = time.monotonic()
        timer = asyncio.get_running_loop().call_later(_QUIET_S, on_due)
        try:
            yield report
        finally:
            timer.cancel()
    output.detail(f"{title}: {time.monotonic() - began:.2f} s")


@contextlib.asynccontextmanager
async def waiting(output: Output, title: str) -> AsyncIterator[None]:
    """Show ``title`` while the block runs, if it takes more than a second."""
    began = time.monotonic()
    notice = asyncio.create_task(_show(output, title))
    try:
        yield
    finally:
        notice.cancel()
        await asyncio.wait([notice])
    output.detail(f"{title}: {time.monotonic() - began:.2f} s")


async def _show(output: Output, title: str) -> None:
    await asyncio.sleep(_QUIET_S)
    if output.json or not sys.stderr.isatty():
        output.note(f"{title} …")
        return
    from rich.console import Console

    with Console(stderr=True).status(printable(title)):
        await asyncio.Event().wait()


class _Lines:
    """A reporter that prints each new step, and amounts every ten seconds."""

    def __init__(self, output: Output, title: str) -> None:
        self._output = output
        self._title = title
        self._step = ""
        self._last = 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.step != self._step or ((progress.total or progress.unit) and now - self._last >= _LINE_EVERY_S):
            self._step, self._last = progress.step, now
            self._output.note(f"{self._title}: {progress.step}{_amount(progress)}")


class _Bar:
    """Shows one bar with the current step.

    It appears with the first step and disappears at the end.
    """

    def __init__(self, title: str, stack: contextlib.ExitStack) -> None:
        self._title = title
        self._stack = stack
        self._bar: tuple[Bars, TaskID] | None = None

    def __call__(self, progress: Progress) -> None:
        bars, task = self._bar = self._bar or self._appear()
        text = printable(f"{self._title}: {progress.step}{_amount(progress)}")
        bars.update(task, description=text, completed=progress.done, total=progress.total)

    def _appear(self) -> tuple[Bars, TaskID]:
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TimeElapsedColumn(),
        )
        bars = self._stack.enter_context(Bars(*columns, console=Console(stderr=True), transient=True))
        return bars, bars.add_task("", total=None)


def _amount(progress: Progress) -> str:
    if progress.unit == "bytes" and (progress.total or progress.done):
        return f" {show_bytes(progress.done)}" + (f" of {show_bytes(progress.total)}" if progress.total else "")
    if not progress.total:
        return ""
    return f" {progress.done} of {progress.total} {progress.unit}".rstrip()
