"""A fake VMM: a process that serves a `FakeAgent` on an inherited socket.

It is a program (``vmm.py SOCKET_FD BEHAVIOUR``), or a fork of the test's process, which starts ten times as fast. For
behaviours see `tests.fakes.driver.FakeDriver`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.fakes.agent import FakeAgent
from tests.fakes.wire import Session, Stream

PANICKED = 4
"""The exit status of a VMM whose guest's kernel panicked."""


class PanicsWhenSetUp(FakeAgent):
    """It answers the host's first request, but not the second."""

    async def answer(self, stream: Stream, session: Session, stream_id: int) -> None:
        if stream.method == "POST":
            os._exit(PANICKED)
        await super().answer(stream, session, stream_id)


async def serve(listener: socket.socket, behaviour: str) -> int:
    """Behave as told; return the exit status."""
    if behaviour == "--die":
        return 3
    if behaviour == "--panic":
        return PANICKED
    if behaviour == "--hang":
        await asyncio.Event().wait()
    kind = PanicsWhenSetUp if behaviour == "--panic-when-set-up" else FakeAgent
    agent = kind(bare=True, ignore_poweroff=behaviour == "--deaf")
    server = await asyncio.start_unix_server(agent.serve, sock=listener)
    await agent.poweroff.wait()
    server.close()
    return 0


def fork(listener: socket.socket, behaviour: str, lock_fd: int, log_path: Path) -> int:
    """Start a VMM as a fork of this process; return its PID when it has the two descriptors and nothing else."""
    ready, closed_when_ready = os.pipe()
    pid = os.fork()
    if pid:
        os.close(closed_when_ready)
        os.read(ready, 1)
        os.close(ready)
        return pid
    status = 1
    try:
        gc.disable()  # objects of the test would close descriptors that are not theirs any more
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        log_fd = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for fd, target in ((os.open(os.devnull, os.O_RDONLY), 0), (log_fd, 1), (log_fd, 2)):
            os.dup2(fd, target)
        for fd in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208 (names only)
            if fd > 2 and fd not in (listener.fileno(), lock_fd):
                with contextlib.suppress(OSError):  # the directory's own
                    os.close(fd)
        status = asyncio.run(serve(listener, behaviour))
    finally:
        os._exit(status)


if __name__ == "__main__":
    sys.exit(asyncio.run(serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])))
