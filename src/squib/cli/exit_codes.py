"""The exit status of the command line for each error."""

from __future__ import annotations

from squib.errors import SquibError

FAILED = 1
USAGE = 2

_EXIT_CODES = {
    "invalid_argument": USAGE,
    "unsupported": USAGE,
    "command_timeout": 124,
    "bad_cwd": 126,
    "no_such_user": 126,
    "not_executable": 126,
    "arguments_too_long": 126,
    "command_not_found": 127,
    "no_shell": 127,
}
"""The codes of errors whose status is not 1. 124, 126 and 127 are what ``timeout`` and a shell use."""


def exit_code(error: SquibError) -> int:
    """Return the exit status for an error."""
    return _EXIT_CODES.get(error.code, FAILED)
