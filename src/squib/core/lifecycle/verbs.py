"""Run the verbs on each VM one at a time.

An urgent verb does not wait for a slow one.

Verbs run in the order in which they were called. A delete supersedes every other verb. A stop supersedes all verbs but
a delete and a stop with an earlier deadline. A superseded verb that is running is cancelled and cleans up; one that is
waiting never runs. In both cases its caller gets `Superseded`.
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
    """A verb's urgency: ordered by rank, then by the earlier deadline.

    Deadlines are in the event loop's time.
    """

    rank: int
    minus_deadline: float = -math.inf


ORDINARY = Urgency(0)
DELETE = Urgency(2)


def stop_within(timeout_s: float) -> Urgency:
    """Return the urgency of a stop that may take ``timeout_s`` from now on."""
    return Urgency(1, -(asyncio.get_running_loop().time() + timeout_s))


@dataclass(eq=False)
class Turn:
    """A verb that is running or waiting.

    ``superseded_by`` names the verb that superseded it.
    """

    verb: str
    urgency: Urgency
    superseded_by: str | None = None
    task: asyncio.Task[Any] | None = None


@dataclass
class _Queue:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    turns: list[Turn] = field(default_factory=list)


class VerbQueues:
    """The verb queue of each VM.

    A queue exists only while it contains verbs.
    """

    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = {}

    async def run(
        self, vm_id: str, verb: str, body: Callable[[Turn], Coroutine[Any, Any, T]], urgency: Urgency = ORDINARY
    ) -> T:
        """Wait for this verb's turn, run ``body``, and return its result.

        If the caller is cancelled, ``body`` is cancelled too, and this call ends when ``body`` has cleaned up. Raises
        `Superseded`.
        """
        turn = Turn(verb, urgency)
        with self._queued(vm_id, turn) as queue:
            async with queue.lock:
                _check_not_superseded(vm_id, turn)
                turn.task = asyncio.create_task(body(turn), name=f"{verb} {vm_id}")
                await _finish(turn.task)
                if turn.task.cancelled():
                    _check_not_superseded(vm_id, turn)
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
    """Wait until ``task`` has ended.

    If this call is cancelled, cancel ``task`` and wait until it has cleaned up.
    """
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait({task})
        raise


def _check_not_superseded(vm_id: str, turn: Turn) -> None:
    if turn.superseded_by is not None:
        raise Superseded(
            f"the {turn.verb} of VM {vm_id} was superseded by a {turn.superseded_by}", hint=f"squib inspect {vm_id}"
        )
