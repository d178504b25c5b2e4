"""Files of environment variables."""

from __future__ import annotations

import os
from pathlib import Path

from squib.errors import InvalidArgument


def read_env_file(path: str) -> dict[str, str]:
    """A file in docker's format: a variable a line, ``K=V``, or ``K`` alone to copy it from this process's environment.

    Empty lines and those that begin with ``#`` are skipped. Values are taken as they are, quotes and all. Raises
    `InvalidArgument`, which names file and line.
    """
    from squib.models import check_env

    try:
        text = Path(path).read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise InvalidArgument(
            f"--env-file: {path} cannot be read: {error.strerror}", hint="give a file with lines like KEY=value"
        ) from error
    variables: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        entry = line.removesuffix("\r").lstrip()
        if not entry or entry.startswith("#"):
            continue
        name, equals, value = entry.partition("=")
        try:
            if not equals and name not in os.environ:
                raise ValueError(f"{name!r} has no value, and is not set here")
            variables |= check_env({name: value if equals else os.environ[name]})
        except ValueError as error:
            raise InvalidArgument(
                f"--env-file: {path}, line {number}: {error}",
                hint="a line is KEY=value, KEY alone to copy it from here, or a comment that begins with #",
            ) from None
    return variables
