"""The commands, one file each."""

from __future__ import annotations

from importlib import import_module

NAMES = (
    "run", "create", "list", "inspect", "start", "stop", "pause", "resume", "suspend", "remove", "fork", "snapshot",
    "rollback", "tree", "exec", "connect", "attach", "ps", "kill", "upload", "download", "cp", "env", "logs", "image",
    "kernel", "template", "install", "uninstall", "doctor", "engine", "serve", "version",
)  # fmt: skip
"""In the order in which ``squib --help`` lists them."""


def load() -> None:
    """Declare all commands.

    Modules are named like the commands, and some of those names are Python keywords.
    """
    for name in NAMES:
        import_module(f"{__name__}.{name}")
