"""A step is undone if what follows it fails, for whatever reason, and only then."""

import asyncio

import anyio
import pytest

from squib.undo import AsyncUndo, Undo, to_its_end

REASONS = [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit, StopIteration, asyncio.CancelledError]


@pytest.mark.parametrize("reason", REASONS)
def test_a_block_that_fails_is_undone(reason: type[BaseException]) -> None:
    undone: list[bool] = []
    with pytest.raises(reason), Undo(lambda: undone.append(True)):
        raise reason
    assert undone == [True]


@pytest.mark.parametrize("reason", [ValueError, KeyboardInterrupt, asyncio.CancelledError])
def test_an_async_block_that_fails_is_undone(reason: type[BaseException]) -> None:
    undone: list[bool] = []

    async def undo() -> None:
        undone.append(True)

    async def block() -> None:
        async with AsyncUndo(undo):
            raise reason

    step = block()
    with pytest.raises(reason):
        while True:
            step.send(None)
    assert undone == [True]


@pytest.mark.anyio
async def test_a_block_that_succeeds_is_not_undone() -> None:
    undone: list[bool] = []

    async def undo() -> None:
        undone.append(True)

    with Undo(lambda: undone.append(True)):
        pass
    async with AsyncUndo(undo):
        pass
    assert undone == []


@pytest.mark.anyio
async def test_work_is_waited_for_however_often_it_is_cancelled() -> None:
    may_end = asyncio.Event()
    running = asyncio.create_task(may_end.wait())
    waiting = asyncio.create_task(to_its_end(running))
    for _ in range(3):
        await asyncio.sleep(0)
        waiting.cancel()
    await asyncio.sleep(0)
    assert not waiting.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert running.done()


@pytest.mark.anyio
async def test_work_is_waited_for_in_a_scope_that_is_cancelled() -> None:
    may_end = asyncio.Event()
    running = asyncio.create_task(may_end.wait())
    with anyio.CancelScope() as scope:
        asyncio.get_running_loop().call_later(0.05, may_end.set)
        scope.cancel()
        await to_its_end(running)
    assert running.done()
