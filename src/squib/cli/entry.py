"""The first module of the command ``squib``: makes Ctrl-C end it quietly.

Importing the rest takes a quarter of a second. Until a command handles signals (`squib.cli.runner`), SIGINT ends the
process at once, without a traceback.
"""

from __future__ import annotations

import signal


def main() -> None:
    """Run ``squib``."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from squib.cli.main import main

    main()
