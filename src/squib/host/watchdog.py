"""Restart the engine if it dies while VMs need one.

A program, not a library: see `squib.api.watchdog`.

    python -I -S watchdog.py PIPE_FD DATABASE LOG ARGV...

The engine holds the write end of the pipe PIPE_FD. It writes ``+`` when a VM needs an engine and ``-`` when no VM
does. The kernel closes the pipe when the engine ends, for whatever reason. This process then acts on the last byte:
after ``+`` it starts the next engine and watches that one; after ``-`` it exits. An engine is never without a watchdog:
the next one gets the write end of a new pipe, which says ``+`` until that engine says otherwise.

DATABASE is the engine's database. If it is missing, the state directory was removed, and no engine is started. LOG is
the engine's log. ARGV is the command that starts an engine; ``--watchdog PIPE_FD PID`` is appended to it, with the
write end and the PID of this process.

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
    pipe, database, log, *argv = sys.argv[1:]
    fd, engine = int(pipe), 0
    restarts: list[float] = []
    while read_verdict(fd) and os.path.exists(database):  # noqa: PTH110 (pathlib takes 2 MiB)
        os.close(fd)
        if engine:
            os.waitpid(engine, 0)
        _write_to(log)
        restarts = recent_restarts(restarts, time.monotonic())
        if len(restarts) >= MAX_RESTARTS:
            _warn(f"the engine died {MAX_RESTARTS} times within {WINDOW_S:g} s: restarting it in {PAUSE_S:g} s")
            time.sleep(PAUSE_S)
        _warn("the engine died while VMs needed it: restarting it")
        restarts.append(time.monotonic())
        engine, fd = start_engine(argv)


def start_engine(argv: list[str]) -> tuple[int, int]:
    """Start an engine; return its PID and the read end of its pipe."""
    fd, write_fd = os.pipe()
    os.write(write_fd, NEEDED)
    os.set_inheritable(write_fd, True)
    engine = os.posix_spawn(argv[0], [*argv, "--watchdog", str(write_fd), str(os.getpid())], os.environ)
    os.close(write_fd)
    return engine, fd


def read_verdict(pipe: int) -> bool:
    """Read ``pipe`` to its end; return whether VMs need an engine.

    The last byte decides. If the pipe is empty, no VM needs an engine.
    """
    last = NOT_NEEDED
    while data := os.read(pipe, 4096):
        last = data[-1:]
    return last == NEEDED


def recent_restarts(restarts: list[float], now: float) -> list[float]:
    """Return the times in ``restarts`` of the last WINDOW_S seconds."""
    return [at for at in restarts if now - at < WINDOW_S]


def _write_to(log: str) -> None:
    """Send standard output and error to the file ``log``.

    The engine may have rotated the inherited file.
    """
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for standard in (1, 2):
        os.dup2(fd, standard)
    os.close(fd)


def _warn(line: str) -> None:
    at = time.strftime("%Y-%m-%d %H:%M:%S")
    os.write(2, f"{at} WARNING squib.watchdog: {line}\n".encode())


if __name__ == "__main__":
    main()
