"""The verbs on one VM take turns, and an urgent one does not wait for a slow one.

Verbs run one at a time, in the order in which they came. A delete supersedes every other verb; a stop supersedes a
start, and a stop with a later deadline. A superseded verb that runs is cancelled and cleans up; one that waits never
runs. Either way its caller gets `Superseded`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from squib.errors import Superseded

T = TypeVar("T")


@dataclass(frozen=True, order=True)
class Urgency:
    """How urgent a verb is: by rank, then by the earlier deadline (in the event loop's time)."""

    rank: int
    minus_deadline: float = -math.inf


ORDINARY = Urgency(0)
DELETE = Urgency(2)


def stop_within(timeout_s: float) -> Urgency:
    """Return the urgency of a stop that may take ``timeout_s`` from now on."""
    return Urgency(1, -(asyncio.get_running_loop().time() + timeout_s))


@dataclass(eq=False)
class Turn:
    """A verb that runs or waits for its turn. ``superseded_by`` names the verb that ended it."""

    verb: str
    urgency: Urgency
    superseded_by: str | None = None
    task: asyncio.Task[Any] | None = None


@dataclass
class _Queue:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    turns: list[Turn] = field(default_factory=list)


class VerbQueues:
    """The queues of all VMs. A queue lives as long as a verb uses it."""

    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = {}

    async def run(
        self, vm_id: str, verb: str, body: Callable[[Turn], Coroutine[Any, Any, T]], urgency: Urgency = ORDINARY
    ) -> T:
        """Run ``body`` when it is this verb's turn, and return its result.

        If the caller is cancelled, so is ``body``; this returns when it has cleaned up. Raises `Superseded`.
        """
        turn = Turn(verb, urgency)
        with self._queued(vm_id, turn) as queue:
            async with queue.lock:
                _check_still_wanted(vm_id, turn)
                turn.task = asyncio.create_task(body(turn), name=f"{verb} {vm_id}")
                await _finish(turn.task)
                if turn.task.cancelled():
                    _check_still_wanted(vm_id, turn)
                return turn.task.result()  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def _queued(self, vm_id: str, turn: Turn) -> Iterator[_Queue]:
        queue = self._queues.setdefault(vm_id, _Queue())
        for other in queue.turns:
            if other.urgency < turn.urgency and other.superseded_by is None:
                other.superseded_by = turn.verb
                if other.task is not None:
                    other.task.cancel()
        queue.turns.append(turn)
        try:
            yield queue
        finally:
            queue.turns.remove(turn)
            if not queue.turns:
                del self._queues[vm_id]

    async def close(self) -> None:
        """Cancel every verb and wait until all have cleaned up."""
        running = [turn.task for queue in self._queues.values() for turn in queue.turns if turn.task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _finish(task: asyncio.Task[Any]) -> None:
    """Wait for the end of ``task``; pass on the cancellation of this call, and wait for the clean-up."""
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait({task})
        raise


def _check_still_wanted(vm_id: str, turn: Turn) -> None:
    if turn.superseded_by is not None:
        raise Superseded(
            f"the {turn.verb} of VM {vm_id} was ended by a {turn.superseded_by}", hint=f"squib inspect {vm_id}"
        )
