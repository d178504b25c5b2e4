"""Restart the engine if it dies while VMs need one.

A program, not a library: see `squib.api.watchdog`.

    python -I -S watchdog.py PIPE_FD DATABASE LOG RESTARTS ARGV...

The engine holds the write end of the pipe PIPE_FD. It writes ``+`` when a VM needs an engine and ``-`` when no VM
does. The kernel closes the pipe when the engine ends, for whatever reason. This process then acts on the last byte:
after ``+`` it becomes the next engine, which starts its own watchdog; after ``-`` it exits.

DATABASE is the engine's database. If it is missing, the state directory was removed, and no engine is started. LOG is
the engine's log. RESTARTS lists the times of earlier restarts, in seconds of the monotonic clock, separated by commas.
ARGV is the command that starts an engine; ``--restarts RESTARTS`` is appended to it.

A bare interpreter runs this file. It imports as little as possible, and nothing from squib.
"""

from __future__ import annotations

import os
import sys
import time

NEEDED, NOT_NEEDED = b"+", b"-"

MAX_RESTARTS = 5
WINDOW_S = 30.0
PAUSE_S = 3.0
"""After more than MAX_RESTARTS restarts within WINDOW_S seconds, so that an engine that cannot run takes little CPU."""


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
        _warn(f"the engine died {MAX_RESTARTS} times within {WINDOW_S:g} s: restarting it in {PAUSE_S:g} s")
        time.sleep(PAUSE_S)
    _warn("the engine died while VMs needed it: restarting it")
    os.execv(argv[0], [*argv, "--restarts", ",".join(f"{at:.3f}" for at in (*recent, now))])


def read_verdict(pipe: int) -> bool:
    """Read ``pipe`` to its end; return whether the last byte says that VMs need an engine."""
    last = NOT_NEEDED
    while data := os.read(pipe, 4096):
        last = data[-1:]
    return last == NEEDED


def recent_restarts(restarts: str, now: float) -> list[float]:
    """Return the times in ``restarts`` that lie within the last WINDOW_S seconds."""
    return [at for at in map(float, filter(None, restarts.split(","))) if now - at < WINDOW_S]


def _write_to(log: str) -> None:
    """Send standard output and error to the file ``log``, since the engine may have rotated the inherited one."""
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for standard in (1, 2):
        os.dup2(fd, standard)
    os.close(fd)


def _warn(line: str) -> None:
    at = time.strftime("%Y-%m-%d %H:%M:%S")
    os.write(2, f"{at} WARNING squib.watchdog: {line}\n".encode())


if __name__ == "__main__":
    main()
