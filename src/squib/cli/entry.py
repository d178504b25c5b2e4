"""The first module of the command ``squib``.

From here on, Ctrl-C ends the command without a traceback. Importing the rest takes a quarter of a second. Until a
command handles signals (`squib.cli.runner`), SIGINT ends the process at once.
"""

from __future__ import annotations

import signal


def main() -> None:
    """Run ``squib``."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from squib.cli.main import main

    main()
