"""A limit on the event-loop time that a guest can take.

One event loop serves all VMs, and a guest decides what it sends. Without a limit, a guest that floods the engine with
frames delays every other VM. So a guest's frames are processed in short turns, and the CPU time of each turn is charged
to its budget. A guest earns time with useful work, such as responding to a request or sending a body. A guest whose
budget is used up pays by waiting: it is not read from for a while, and its sends block. Useless work thus gets a small
share of the time, which all such guests divide.
"""

from __future__ import annotations

import time
from typing import ClassVar
from weakref import WeakSet

TURN_S = 0.001
"""The longest time for which one guest's frames are processed without a break."""

_FREE_SHARE = 0.05
"""CPU time per time of waiting that all throttled guests together get."""
_MAX_WAIT_S = 1.0
"""A wait pays any debt: a guest that was charged for too much must not seem to be stalled."""
_FIRST_BALANCE_S = 0.02
_MAX_BALANCE_S = 0.25
_REQUEST_S = 0.003
_RECEIVED_BYTE_S = 1e-7
"""Earned for a byte of a response's body. A byte of a large DATA frame costs about 1 ns. One of a small frame with
terminal output, of about 70 bytes, costs up to 100 ns. Frames of single bytes cost more than they earn.
"""
_SENT_BYTE_S = 15e-9
_DELIVERY_S = 0.00002
"""Charged for waking the reader of a body, which passes on what has arrived."""
_PART_S = 0.00015
"""Charged for each further part of what has arrived: the frames of a command's output in it are small."""


class LoopBudget:
    """The budget of one guest, in seconds of CPU time.

    It outlives the guest's connections.
    """

    _throttled: ClassVar[WeakSet[LoopBudget]] = WeakSet()

    def __init__(self) -> None:
        self._balance_s = _FIRST_BALANCE_S

    @staticmethod
    def clock() -> float:
        """Return this thread's CPU time.

        (Wall-clock time would charge a guest for other processes on a busy host.)
        """
        return time.thread_time()

    def spend(self, seconds: float) -> None:
        """Charge time that was spent on this guest."""
        self._balance_s -= seconds

    def spend_delivery(self) -> None:
        """Charge the delivery of a piece of a body to its reader."""
        self._balance_s -= _DELIVERY_S

    def spend_part(self) -> None:
        """Charge the delivery of a further part of a piece."""
        self._balance_s -= _PART_S

    def earn_request(self) -> None:
        """Add what a request to this guest may cost."""
        self._earn(_REQUEST_S)

    def earn_received(self, count: int) -> None:
        """Add what receiving ``count`` bytes of a response's body may cost."""
        self._earn(count * _RECEIVED_BYTE_S)

    def earn_sent(self, count: int) -> None:
        """Add what replies to ``count`` sent bytes of a body may cost."""
        self._earn(count * _SENT_BYTE_S)

    def throttle(self) -> float:
        """Return how many seconds to leave this guest alone.

        Returns 0 if the budget is not used up. The wait pays the debt. Time that passes otherwise pays nothing: on a
        busy host the engine may spend most of it waiting for a CPU.
        """
        if self._balance_s >= 0:
            self.release()
            return 0.0
        self._throttled.add(self)
        wait_s = min(-self._balance_s * len(self._throttled) / _FREE_SHARE, _MAX_WAIT_S)
        self._balance_s = 0.0
        return wait_s

    def release(self) -> None:
        """Stop counting this guest as throttled: it is no longer waiting.

        Idempotent.
        """
        self._throttled.discard(self)

    def _earn(self, seconds: float) -> None:
        self._balance_s = min(self._balance_s + seconds, _MAX_BALANCE_S)
