"""The engine's side of the watchdog, which restarts the engine if it dies.

The watchdog starts another engine only if VMs need one. `squib.host.watchdog` is its program. If the watchdog is
killed, the engine starts another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections.abc import Sequence

from squib.host import proc, watchdog
from squib.host.processes import Process
from squib.host.watchdog import NEEDED, NOT_NEEDED
from squib.paths import Home

log = logging.getLogger("squib.watchdog")

_PAUSE_S = 1.0
"""At least this much time passes between two starts, if the process ends again and again."""
_END_TIMEOUT_S = 1.0


class Watchdog:
    """The watchdog of an engine of ``home``.

    ``engine_argv`` starts the next engine. ``inherited`` is the pipe and the PID of the watchdog that started this
    engine. Until `set_needed` is called, the watchdog assumes that VMs need an engine, because VMs of an earlier engine
    may run.
    """

    def __init__(self, home: Home, engine_argv: Sequence[str], inherited: tuple[int, int] | None = None) -> None:
        self._home = home
        self._arguments = [str(home.database), str(home.engine_log), *engine_argv]
        self._needed = True
        self._pipe = -1
        self._process: Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._inherited = inherited

    def start(self) -> None:
        """Start the process unless inherited, and restart it when it ends."""
        if self._inherited:
            self._inherit(*self._inherited)
        if not self._process:
            self._spawn()
        self._keeper = asyncio.create_task(self._keep(), name="watchdog")

    def set_needed(self, needed: bool) -> None:
        """Say whether VMs need an engine.

        From the return of this call on, the watchdog acts on the new value.
        """
        if needed != self._needed:
            self._needed = needed
            self._write()

    async def end(self) -> None:
        """End the process and wait for its end, because this engine exits."""
        self.set_needed(False)
        if self._keeper:
            self._keeper.cancel()
        self._close_pipe()
        if self._process:
            try:
                await asyncio.wait_for(self._process.wait(), _END_TIMEOUT_S)
            except TimeoutError:  # it is suspended
                await self._process.kill()

    def _inherit(self, pipe: int, pid: int) -> None:
        os.set_inheritable(pipe, False)
        os.set_blocking(pipe, False)
        self._pipe = pipe
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            if os.getppid() == pid:
                self._process = Process(pid, pidfd)
            else:  # it has been killed, and its PID may be another process's
                os.close(pidfd)

    def _spawn(self) -> None:
        self._close_pipe()
        read_fd, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        self._write()  # before the process exists, so that it is right however soon this engine dies
        argv = [sys.executable, "-I", "-S", watchdog.__file__, str(read_fd), *self._arguments]
        try:
            pid = proc.spawn_daemon(argv, log_path=self._home.engine_log, pass_fds=(read_fd,))
            self._process = Process(pid, os.pidfd_open(pid))
        except OSError as error:
            self._process = None
            log.error("the watchdog cannot be started: %s", error.strerror)
        finally:
            os.close(read_fd)

    async def _keep(self) -> None:
        while True:
            started_at = time.monotonic()
            if self._process:
                await self._process.wait()
                log.warning("the watchdog has ended: starting another")
            await asyncio.sleep(max(0.0, started_at + _PAUSE_S - time.monotonic()))
            self._spawn()

    def _write(self) -> None:
        # Without a reader, the process has been killed. The next one gets the byte that is right by then.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._pipe, NEEDED if self._needed else NOT_NEEDED)

    def _close_pipe(self) -> None:
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1
