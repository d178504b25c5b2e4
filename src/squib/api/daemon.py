"""The engine as a detached process: ``python -m squib.api.daemon HOME READY_FD``, as `squib.sdk.local` starts it.

It writes one JSON object to the descriptor when it answers requests (``{}``) or could not start
(``{"error": …}``), and closes it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from squib.api.server import log_to_file, serve
from squib.errors import SquibError, to_wire
from squib.paths import Home

DEFAULT_IDLE_EXIT_S = 60.0


def main() -> None:
    """Run the engine of the state directory in ``argv``, and report its start."""
    home, ready_fd = Home(Path(sys.argv[1])), int(sys.argv[2])
    os.set_inheritable(ready_fd, False)
    idle_exit_s = float(os.environ.get("SQUIB_IDLE_EXIT_S") or DEFAULT_IDLE_EXIT_S)

    def report(verdict: dict[str, object]) -> None:
        with os.fdopen(ready_fd, "w") as pipe:
            json.dump(verdict, pipe)

    try:
        log_to_file(home)
        asyncio.run(serve(home, idle_exit_s=idle_exit_s, on_ready=lambda _url, _token: report({})))
    except SquibError as error:
        report({"error": to_wire(error)})
        sys.exit(1)


if __name__ == "__main__":
    main()
