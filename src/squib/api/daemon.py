"""The engine as a detached process: ``python -m squib.api.daemon HOME``.

`squib.sdk.local` starts it with ``--ready-fd FD``: it writes one JSON object to the descriptor when it answers requests
(``{}``) or could not start (``{"error": …}``), and closes it. Its watchdog (`squib.host.watchdog`) starts it with
``--watchdog FD PID``. If another engine already serves the state directory, this process ends and reports success.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from squib.api.logfile import log_to_file
from squib.api.server import serve
from squib.api.watchdog import Watchdog
from squib.errors import InvalidArgument, SquibError
from squib.host import sockets
from squib.paths import Home
from squib.protocol.errors import to_wire

log = logging.getLogger("squib.daemon")

DEFAULT_IDLE_EXIT_S = 60.0
MIN_IDLE_EXIT_S = 1.0
"""The client that started the engine needs a moment for its request."""
MAX_IDLE_EXIT_S = 366 * 86400.0


def main(program: Sequence[str] = (sys.executable, "-P", "-m", "squib.api.daemon")) -> None:
    """Run the engine as the command line says, and report its start.

    ``program`` starts this program again.
    """
    options = _parser().parse_args()
    home = Home(options.home)
    if options.ready_fd is not None:
        os.set_inheritable(options.ready_fd, False)

    def report(verdict: dict[str, object]) -> None:
        if options.ready_fd is not None:
            with os.fdopen(options.ready_fd, "w") as pipe:
                json.dump(verdict, pipe)

    try:
        log_to_file(home)
        watchdog = Watchdog(home, [*program, str(home.root)], options.watchdog)
        asyncio.run(_run(home, watchdog, report))
    except SquibError as error:
        if sockets.is_served(home.engine_socket):
            log.info("another engine of %s was faster", home.root)
            report({})
            return
        log.error("the engine could not start: %s", error.message)
        report({"error": to_wire(error)})
        sys.exit(1)
    except asyncio.CancelledError:
        sys.exit(128 + signal.SIGTERM)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="squib.api.daemon", description="Run the engine of a state directory.")
    parser.add_argument("home", type=Path)
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--watchdog", type=int, nargs=2, metavar=("FD", "PID"))
    return parser


def idle_exit_from_environment() -> float:
    """Return ``$SQUIB_IDLE_EXIT_S``, at least `MIN_IDLE_EXIT_S`.

    Raises `InvalidArgument` if it is not a number.
    """
    text = os.environ.get("SQUIB_IDLE_EXIT_S") or str(DEFAULT_IDLE_EXIT_S)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= MAX_IDLE_EXIT_S:
        raise InvalidArgument(
            f"SQUIB_IDLE_EXIT_S is {text!r}, not a number of seconds from 0 to {MAX_IDLE_EXIT_S:.0f}",
            hint="export SQUIB_IDLE_EXIT_S=60, or unset it",
        )
    return max(seconds, MIN_IDLE_EXIT_S)


async def _run(home: Home, watchdog: Watchdog, report: Callable[[dict[str, object]], None]) -> None:
    """Serve under the watchdog.

    Any other end than these is a fault, and the watchdog starts another engine.
    """
    idle_exit_s = idle_exit_from_environment()
    main_task = asyncio.current_task()
    assert main_task
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, main_task.cancel)  # until `serve` has its own
    watchdog.start()
    try:
        await serve(
            home,
            idle_exit_s=idle_exit_s,
            on_ready=lambda _url, _token: report({}),
            on_needed=watchdog.set_needed,
        )
    except (SquibError, asyncio.CancelledError):
        await watchdog.end()
        raise
    await watchdog.end()


if __name__ == "__main__":
    main()
