"""A step is undone if what follows it fails, for whatever reason, and only then."""

import asyncio

import pytest

from squib.undo import AsyncUndo, Undo

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
