"""``squib``: the entry point, which turns errors into exit statuses.

====  ===============================================================
0     success
1     failure
2     invalid command line or value
124   the command in the VM timed out
126   the command in the VM cannot be executed; 127: it does not exist
130   Ctrl-C; 128 + n: signal n, to squib or to the command
====  ===============================================================

Any other status comes from the command in the VM.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import typer

from squib.cli import commands
from squib.cli.app import SIGPIPE_STATUS, app
from squib.cli.exit_codes import FAILED, USAGE
from squib.cli.render import Output
from squib.errors import HostError, InvalidArgument, SquibError

_SIGINT_STATUS = 128 + signal.SIGINT


def main() -> NoReturn:
    """Run this process's command line and exit with its status."""
    _prepare_streams()
    status = run(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as in `squib.cli.entry`: the event loop has changed it
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:  # such as a full disk, or a terminal that was closed
            if stream is sys.stdout:
                status = SIGPIPE_STATUS if isinstance(error, BrokenPipeError) else status or FAILED
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # the interpreter flushes again
    sys.exit(status)


def _prepare_streams() -> None:
    """Open standard streams that are closed, and escape unencodable output.

    A closed stream (``squib ls >&-``) is replaced by ``/dev/null``, so that no other file gets its descriptor.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 (it stays open)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return the exit status."""
    commands.load()
    try:
        return app(list(arguments) or ["--help"], prog_name="squib", standalone_mode=False) or 0
    except typer.TyperException as error:
        Output(json="--json" in arguments).error(_usage_error(error))
        return USAGE
    except (KeyboardInterrupt, typer.Abort):
        return _SIGINT_STATUS
    except OSError as error:  # an error of this process, such as output to a full disk
        place = f": {error.filename}" if error.filename else ""
        Output(json="--json" in arguments).error(HostError(f"{error.strerror or error}{place}"))
        return FAILED


def _usage_error(error: typer.TyperException) -> SquibError:
    message = error.format_message()
    path = getattr(getattr(error, "ctx", None), "command_path", "squib")
    return InvalidArgument(message, hint=f"{path} --help")
