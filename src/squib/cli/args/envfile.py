"""Read files of environment variables."""

from __future__ import annotations

import os
from pathlib import Path

from squib.errors import InvalidArgument

_MAX_BYTES = 16 << 20
"""More than Linux passes to a command. A device such as ``/dev/zero`` has no end."""
_HINT = "use a file with lines such as KEY=value"


def read_env_file(path: str) -> dict[str, str]:
    """Read a file of environment variables in Docker's format.

    Each line is ``K=V``, or ``K`` to copy the variable from this process's environment. Empty lines and lines that
    start with ``#`` are skipped. Values are not interpreted: quotes are part of them.

    Raises `InvalidArgument`, which names the file and the line.
    """
    from squib.models import check_env

    try:
        with Path(path).open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL character
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidArgument(f"--env-file: cannot read {path}: {reason}", hint=_HINT) from error
    if len(content) > _MAX_BYTES:
        raise InvalidArgument(f"--env-file: {path} has more than {_MAX_BYTES >> 20} MiB", hint=_HINT)
    text = content.decode("utf-8-sig", "surrogateescape")
    variables: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        entry = line.removesuffix("\r").lstrip()
        if not entry or entry.startswith("#"):
            continue
        name, equals, value = entry.partition("=")
        try:
            if not equals and name not in os.environ:
                raise ValueError(f"{name!r} has no value and is not set in the local environment")
            variables |= check_env({name: value if equals else os.environ[name]})
        except ValueError as error:
            raise InvalidArgument(
                f"--env-file: {path}, line {number}: {error}",
                hint="write KEY=value, KEY to copy the local value, or a comment that starts with #",
            ) from None
    return variables
