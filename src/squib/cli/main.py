"""``squib``: the entry point, and how whatever goes wrong becomes a message and an exit status.

====  ===============================================================
0     done
1     it failed
2     the command line is wrong, or a value in it
124   the command in the VM reached its timeout
126   the command in the VM could not be started, 127: was not found
130   Ctrl-C; 128 + n: signal n, here or in the VM
====  ===============================================================

Any other status is that of the command in the VM.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import typer

from squib.cli import commands
from squib.cli.app import SIGPIPE_STATUS, app
from squib.cli.render import Output
from squib.errors import InvalidArgument, SquibError

_SIGINT_STATUS = 128 + signal.SIGINT


def main() -> NoReturn:
    """Run this process's command line and end with its status."""
    status = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = SIGPIPE_STATUS
    if status == SIGPIPE_STATUS:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the interpreter's own flush succeeds
    sys.exit(status)


def run(arguments: Sequence[str]) -> int:
    """Run a command line; return the exit status."""
    commands.load()
    try:
        return app(list(arguments) or ["--help"], prog_name="squib", standalone_mode=False) or 0
    except typer.TyperException as error:
        Output(json="--json" in arguments).error(_usage_error(error))
        return InvalidArgument.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _SIGINT_STATUS


def _usage_error(error: typer.TyperException) -> SquibError:
    message = error.format_message()
    path = getattr(getattr(error, "ctx", None), "command_path", "squib")
    return InvalidArgument(message, hint=f"{path} --help")


if __name__ == "__main__":
    main()
