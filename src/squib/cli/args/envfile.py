"""Read files of environment variables."""

from __future__ import annotations

import os
from pathlib import Path

from squib.errors import InvalidArgument


def read_env_file(path: str) -> dict[str, str]:
    """Read a file in Docker's format: one variable per line, ``K=V``, or ``K`` to copy it from this environment.

    Empty lines and lines that start with ``#`` are skipped. Values are not interpreted: quotes are part of them. Raises
    `InvalidArgument`, which names the file and the line.
    """
    from squib.models import check_env

    try:
        text = Path(path).read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise InvalidArgument(
            f"--env-file: cannot read {path}: {error.strerror}", hint="use a file with lines such as KEY=value"
        ) from error
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
