"""Commands that work on this host, not on an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from squib.cli.args import options
from squib.errors import InvalidArgument

if TYPE_CHECKING:
    from squib.paths import Home


def check_program(name: str) -> None:
    """Check that squib can install and uninstall a program. Raises `InvalidArgument`."""
    if name != "firecracker":
        raise InvalidArgument(f"unknown program {name!r}: use firecracker")


async def local_home(command: str) -> Home:
    """Return the state directory of this host, for ``command``.

    Raises `InvalidArgument` if ``$SQUIB_URL`` selects a remote engine.
    """
    async with options.connect() as engine:
        if engine.home is None:
            raise InvalidArgument(
                f"{command} changes this host, but SQUIB_URL points to a remote engine",
                hint="run it on the engine's host, or unset SQUIB_URL",
            )
        return engine.home
