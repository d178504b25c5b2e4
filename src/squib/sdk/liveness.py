"""Finding out whether an engine that is silent still responds.

A request such as a boot, or a command that prints nothing, may take for ever, so its silence says nothing. If an engine
is suspended or its host is lost, its connections are silent too. A client therefore asks: while a request has waited
for `SILENCE_S` without a byte, the engine is sent a small request of its own (a *probe*).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress

SILENCE_S = 5.0
PROBES = 3
PROBE_TIMEOUT_S = 4.0
"""A busy engine has 12 s to answer. Several short probes, because a client that was suspended itself finds the first
one timed out as soon as it goes on.
"""

Probe = Callable[[float], Awaitable[bool]]
"""Sends a probe and returns whether the engine responded within this many seconds."""


class Liveness:
    """Whether one engine responds.

    All connections of a client share it, and one probe serves all of them.
    """

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._heard_at = -math.inf
        self._asking: asyncio.Task[bool] | None = None

    def heard(self) -> None:
        """Note that the engine has sent something."""
        self._heard_at = asyncio.get_running_loop().time()

    async def responds(self) -> bool:
        """Return whether the engine responds, or has just sent something."""
        if asyncio.get_running_loop().time() - self._heard_at < PROBE_TIMEOUT_S:
            return True
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(), name="probe of the engine")
        return await asyncio.shield(self._asking)

    async def _ask(self) -> bool:
        for _ in range(PROBES):
            if await self._probe(PROBE_TIMEOUT_S):
                self.heard()
                return True
        return False

    async def aclose(self) -> None:
        """End a probe that is under way. Idempotent."""
        if self._asking and not self._asking.done():
            self._asking.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait({self._asking})


class Watcher:
    """Watches one connection, and calls ``give_up`` if the engine is lost.

    The engine is lost if a read or write waits for it and it does not respond to probes.
    """

    def __init__(self, liveness: Liveness, give_up: Callable[[], Awaitable[None]]) -> None:
        self.lost = False
        """Whether ``give_up`` was called."""
        self._liveness = liveness
        self._give_up = give_up
        self._since: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._check: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Note that a read or write begins."""
        loop = asyncio.get_running_loop()
        self._since = loop.time()
        if self._timer is None and self._check is None:
            self._timer = loop.call_later(SILENCE_S, self._look)

    def end(self) -> None:
        """Note that it has ended."""
        self._since = None

    def close(self) -> None:
        """Stop watching. Idempotent."""
        self._since = None
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self._since is None:  # the next `begin` starts the timer again
            return
        loop = asyncio.get_running_loop()
        rest_s = self._since + SILENCE_S - loop.time()
        if rest_s > 0:
            self._timer = loop.call_later(rest_s, self._look)
        else:
            self._check = loop.create_task(self._check_engine(self._since), name="check of a silent connection")

    async def _check_engine(self, since: float) -> None:
        responds = await self._liveness.responds()
        self._check = None
        if self._since is None:
            return
        if responds or self._since != since:
            self._timer = asyncio.get_running_loop().call_later(SILENCE_S, self._look)
            return
        self.lost = True
        await self._give_up()
