"""Start the engine again if it dies while VMs need one. A program, not a library: see `squib.api.watchdog`.

    python -I -S watchdog.py PIPE_FD DATABASE LOG RESTARTS ARGV...

The engine holds the write end of the pipe PIPE_FD. It writes ``+`` when VMs need an engine and ``-`` when none does.
The kernel closes that end when the engine ends, however that happens. This process then acts on the last byte: after
``+`` it becomes the next engine, which starts a watchdog of its own; after ``-`` it exits.

DATABASE is a file of the state directory: without it there is no state to serve, and nothing is started. LOG is the
engine's log. RESTARTS lists when engines were started again, in seconds of the monotonic clock, separated by commas.
ARGV starts an engine; ``--restarts RESTARTS`` is appended to it.

A bare interpreter runs this file, so it imports as little as possible and nothing of squib.
"""

from __future__ import annotations

import os
import sys
import time

NEEDED, NOT_NEEDED = b"+", b"-"

MAX_RESTARTS = 5
WINDOW_S = 30.0


def main() -> None:
    pipe, database, log, restarts, *argv = sys.argv[1:]
    needed = read_verdict(int(pipe))
    os.close(int(pipe))
    if not needed or not os.path.exists(database):  # noqa: PTH110 (pathlib takes 2 MiB)
        return
    _write_to(log)
    now = time.monotonic()
    recent = recent_restarts(restarts, now)
    if len(recent) >= MAX_RESTARTS:
        _say(f"the engine died {MAX_RESTARTS} times within {WINDOW_S:g} s and is not started again")
        return
    _say("the engine died while VMs needed it: starting another")
    os.execv(argv[0], [*argv, "--restarts", ",".join(f"{at:.3f}" for at in (*recent, now))])


def read_verdict(pipe: int) -> bool:
    """Return whether VMs need an engine, by the last byte that comes from ``pipe`` before its end."""
    last = NOT_NEEDED
    while data := os.read(pipe, 4096):
        last = data[-1:]
    return last == NEEDED


def recent_restarts(restarts: str, now: float) -> list[float]:
    """Return the times in ``restarts`` of the last WINDOW_S seconds."""
    return [at for at in map(float, filter(None, restarts.split(","))) if now - at < WINDOW_S]


def _write_to(log: str) -> None:
    """Use the file ``log`` for standard output and error. The engine may have rotated the one that is open."""
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for standard in (1, 2):
        os.dup2(fd, standard)
    os.close(fd)


def _say(line: str) -> None:
    at = time.strftime("%Y-%m-%d %H:%M:%S")
    os.write(2, f"{at} WARNING squib.watchdog: {line}\n".encode())


if __name__ == "__main__":
    main()
