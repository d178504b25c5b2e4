"""The commands, one verb one file."""

from __future__ import annotations

from importlib import import_module

NAMES = (
    "run", "create", "list", "inspect", "start", "stop", "pause", "resume", "remove", "exec", "connect", "attach",
    "ps", "kill", "upload", "download", "cp", "env", "logs", "image", "kernel", "doctor", "serve", "version",
)  # fmt: skip
"""In the order in which ``squib --help`` shows them."""


def load() -> None:
    """Declare all commands. Modules are named as what people type, so some names are not for ``from`` imports."""
    for name in NAMES:
        import_module(f"{__name__}.{name}")
