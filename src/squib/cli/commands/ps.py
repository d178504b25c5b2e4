"""``squib ps``."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from squib.cli.app import command
from squib.cli.args import options
from squib.cli.render import Column, Output

if TYPE_CHECKING:
    from datetime import datetime

    from squib.models import ProcessInfo

_COLUMNS = (
    Column("ID"), Column("PID", right=True), Column("USER"), Column("STARTED", right=True), Column("MODE"),
    Column("STATUS"), Column("COMMAND"),
)  # fmt: skip

_SHOWN_CHARS = 60


@command("ps", examples=["squib ps web", "squib ps --json web | jq '.[].id'"])
async def ps(output: Output, vm: options.Ref) -> None:
    """List the commands that squib started in a VM.

    The list contains running commands, ended ones whose descendants still run, and recently ended background commands,
    oldest first. MODE is foreground, background or terminal; a detached terminal has no client. --json shows more
    fields, and full commands.
    """
    from datetime import UTC, datetime

    from squib.sdk.aio_process import list_processes

    async with options.connect() as engine:
        found = await list_processes(engine, vm)
    if output.json:
        output.data(found)
        return
    now = datetime.now(UTC)
    output.table(_COLUMNS, [_row(process, now) for process in found])


def _row(process: ProcessInfo, now: datetime) -> list[str]:
    from squib.cli.args.units import show_age

    return [
        process.id,
        str(process.pid),
        process.user,
        f"{show_age(process.started_at, now)} ago",
        _mode(process),
        _status(process),
        _shortened(shlex.join(process.argv)),
    ]


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"


def _mode(process: ProcessInfo) -> str:
    if process.pty:
        return "terminal" if process.readers or not process.running else "terminal, detached"
    return "background" if process.background else "foreground"


def _status(process: ProcessInfo) -> str:
    if process.running:
        return "running"
    if process.timed_out:
        return "timed out"
    return f"signal {process.signal}" if process.signal is not None else f"exited {process.exit_code}"
