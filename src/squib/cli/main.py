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
from squib.cli.app import app
from squib.cli.render import Output
from squib.errors import InvalidArgument, SquibError

_SIGNAL_BASE = 128


def main() -> NoReturn:
    """Run this process's command line and end with its status."""
    status = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = _SIGNAL_BASE + signal.SIGPIPE
    if status == _SIGNAL_BASE + signal.SIGPIPE:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the interpreter's own flush succeeds
    sys.exit(status)


def run(arguments: Sequence[str]) -> int:
    """Run a command line; return the exit status."""
    commands.load()
    try:
        return app(list(arguments), prog_name="squib", standalone_mode=False) or 0
    except SquibError as error:
        _output(arguments).error(error)
        return error.exit_code
    except typer.TyperException as error:
        _output(arguments).error(_usage_error(error))
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _SIGNAL_BASE + signal.SIGINT
    except BrokenPipeError:
        return _SIGNAL_BASE + signal.SIGPIPE


def _output(arguments: Sequence[str]) -> Output:
    """How to report an error: flags that were not parsed, because of it, count too."""
    return Output(json="--json" in arguments)


def _usage_error(error: typer.TyperException) -> SquibError:
    message = error.format_message()
    context = getattr(error, "ctx", None)
    path = context.command_path if isinstance(context, typer.Context) else "squib"
    return InvalidArgument(message, hint=f"{path} --help")


if __name__ == "__main__":
    main()
