"""Verbs on one VM: one at a time, in order, except that urgent ones end the others."""

import asyncio

import pytest

from squib.core.lifecycle.verbs import DELETE, ORDINARY, Turn, Urgency, VerbQueues, stop_within
from squib.errors import Superseded

pytestmark = pytest.mark.anyio


class Log(list[str]):
    """What happened, in order."""

    def verb(self, name: str, until: asyncio.Event | None = None):  # type: ignore[no-untyped-def]
        async def body(turn: Turn) -> str:
            self.append(f"{name} begins")
            try:
                if until:
                    await until.wait()
            finally:
                self.append(f"{name} ends")
            return name

        return body


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_verbs_of_one_vm_run_in_order_and_those_of_others_beside_them() -> None:
    queues, log, go = VerbQueues(), Log(), asyncio.Event()
    first = asyncio.create_task(queues.run("a", "start", log.verb("first", go)))
    await settle()
    second = asyncio.create_task(queues.run("a", "pause", log.verb("second")))
    await settle()
    assert await queues.run("b", "pause", log.verb("other")) == "other"
    go.set()
    assert (await first, await second) == ("first", "second")
    assert log == ["first begins", "other begins", "other ends", "first ends", "second begins", "second ends"]


async def test_an_urgent_verb_ends_what_runs_and_what_waits() -> None:
    queues, log, never = VerbQueues(), Log(), asyncio.Event()
    running = asyncio.create_task(queues.run("a", "start", log.verb("start", never)))
    await settle()
    waiting = asyncio.create_task(queues.run("a", "pause", log.verb("pause")))
    await settle()
    assert await queues.run("a", "delete", log.verb("delete"), DELETE) == "delete"
    for task in (running, waiting):
        with pytest.raises(Superseded, match="superseded by a delete"):
            await task
    assert log == ["start begins", "start ends", "delete begins", "delete ends"]


async def test_a_verb_that_is_as_urgent_waits() -> None:
    queues, log, go = VerbQueues(), Log(), asyncio.Event()
    first = asyncio.create_task(queues.run("a", "delete", log.verb("first", go), DELETE))
    await settle()
    second = asyncio.create_task(queues.run("a", "delete", log.verb("second"), DELETE))
    await settle()
    go.set()
    assert (await first, await second) == ("first", "second")


async def test_urgencies_are_ordered() -> None:
    assert ORDINARY < stop_within(60) < stop_within(1) < DELETE
    assert Urgency(1, -5.0) < Urgency(1, -4.0)


async def test_a_caller_that_is_cancelled_waits_for_the_clean_up_of_its_verb() -> None:
    queues, log, never = VerbQueues(), Log(), asyncio.Event()
    task = asyncio.create_task(queues.run("a", "start", log.verb("start", never)))
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log == ["start begins", "start ends"]


async def test_an_error_is_the_callers_and_the_next_verb_runs() -> None:
    queues, log = VerbQueues(), Log()

    async def fails(turn: Turn) -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        await queues.run("a", "start", fails)
    assert await queues.run("a", "start", log.verb("start")) == "start"
    assert queues._queues == {}


async def test_a_queue_lives_as_long_as_somebody_waits_in_it() -> None:
    """A VM is deleted and made again while others wait: they all use the same queue."""
    queues, log, go = VerbQueues(), Log(), asyncio.Event()
    tasks = [asyncio.create_task(queues.run("a", "delete", log.verb("d", go), DELETE))]
    await settle()
    tasks += [asyncio.create_task(queues.run("a", "create", log.verb(f"c{n}"))) for n in range(3)]
    await settle()
    go.set()
    await asyncio.gather(*tasks)
    begins, ends = log[::2], log[1::2]
    assert [line.split()[1] for line in begins] == ["begins"] * 4
    assert [line.split()[1] for line in ends] == ["ends"] * 4


async def test_closing_ends_all_verbs() -> None:
    queues, log, never = VerbQueues(), Log(), asyncio.Event()
    task = asyncio.create_task(queues.run("a", "start", log.verb("start", never)))
    await settle()
    await queues.close()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log[-1] == "start ends"
