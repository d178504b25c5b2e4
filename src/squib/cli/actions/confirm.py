"""Ask before something is removed."""

from __future__ import annotations

import asyncio
import os
import sys

from squib.cli.render import Output, printable

_LINE_BYTES = 1 << 12


async def confirm(output: Output, question: str, *, yes: bool) -> bool:
    """Return whether the user agrees; ``yes`` is the flag ``--yes``.

    Only a terminal is asked. Without one, and with ``--json``, the answer is no, and a note says how to agree.
    """
    if yes:
        return True
    if output.json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        output.note("nothing was removed: add --yes")
        return False
    sys.stderr.write(printable(f"{question} [y/N] "))
    sys.stderr.flush()
    return (await _read_line(sys.stdin.fileno())).strip().lower() in ("y", "yes")


async def _read_line(fd: int) -> str:
    """Read a line of a terminal. Unlike `input`, it can be cancelled by Ctrl-C."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(fd, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(fd)
    return os.read(fd, _LINE_BYTES).decode(errors="replace")
