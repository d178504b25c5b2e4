"""The agent's JSON replies: decode, check, and turn errors into squib's.

They are specified in ``protocol/agent.md`` §3.
"""

from __future__ import annotations

import json
from typing import Any

from squib import errors
from squib.errors import AgentProtocolError, SquibError
from squib.protocol.text import printable

AGENT_ERRORS: dict[str, type[SquibError]] = {
    "bad_request": errors.InvalidArgument,
    "internal": errors.GuestFailed,
    "powering_off": errors.WrongState,
    "not_set_up": errors.WrongState,
    **{
        error.code: error
        for error in (
            errors.NoShell,
            errors.CommandNotFound,
            errors.NotExecutable,
            errors.ArgumentsTooLong,
            errors.BadWorkingDirectory,
            errors.NoSuchUser,
            errors.NoSuchProcess,
            errors.StdinClosed,
            errors.NoSuchFile,
            errors.FileExists,
            errors.NotAFile,
            errors.IsADirectory,
            errors.NotADirectory,
            errors.DirectoryNotEmpty,
            errors.PermissionDenied,
            errors.GuestDiskFull,
            errors.NoTerminal,
        )
    },
}
"""The errors that an agent may report. A guest cannot speak for the engine: any other code is a protocol error."""

_HINTS = {
    "no_shell": 'pass the program and its arguments as a list: run(["prog", "arg"]), or squib exec VM prog arg',
    "arguments_too_long": "pass long data as standard input (input=), or write it to a file (vm.files.write)",
    "directory_not_empty": "recursive=True removes it with its contents",
    "guest_disk_full": "squib exec VM df -h shows the free space; squib create --disk 20gb makes a larger disk",
    "no_such_process": "squib ps VM lists the processes; only background commands are kept after their end",
    "command_not_found": "list the programs: squib exec VM ls /usr/bin",
}


def decode(body: bytes) -> dict[str, Any]:
    """Return the JSON object in ``body``. Raises `AgentProtocolError`."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise AgentProtocolError("the guest's response is not JSON") from error
    if not isinstance(value, dict):
        raise AgentProtocolError("the guest's response is not a JSON object")
    return value


def text_field(value: dict[str, Any], name: str, *, max_chars: int = 200) -> str:
    """Return a field of text, printable; "" if it is missing.

    Raises `AgentProtocolError` if it is not text.
    """
    text = value.get(name, "")
    if not isinstance(text, str):
        raise AgentProtocolError(f"{name} in the guest's response is not text")
    return printable(text, max_chars)


def agent_error(status: int, body: bytes) -> SquibError:
    """Return the error in a response with ``status``: one of `AGENT_ERRORS`.

    Raises `AgentProtocolError`.
    """
    error = decode(body).get("error")
    if not isinstance(error, dict):
        raise AgentProtocolError(f"the guest responded with status {status} and no error")
    code = text_field(error, "code", max_chars=50)
    message = text_field(error, "message", max_chars=2000)
    if code not in AGENT_ERRORS:
        raise AgentProtocolError(f"the guest responded with status {status} and an unknown error {code!r}")
    return AGENT_ERRORS[code](message, hint=_HINTS.get(code, ""))
