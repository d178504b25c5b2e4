"""Locks that live as long as an open file."""

import asyncio
import os
from pathlib import Path

import pytest

from squib.host.locks import FileLock, locked


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    with FileLock(tmp_path / "lock") as first, FileLock(tmp_path / "lock") as second:
        assert first.try_acquire()
        assert not second.try_acquire()
        first.close()
        assert second.try_acquire()


def test_a_lock_knows_that_its_file_was_removed_or_replaced(tmp_path: Path) -> None:
    with FileLock(tmp_path / "lock") as lock:
        assert not lock.is_removed()
        lock.path.unlink()
        assert lock.is_removed()
        lock.path.touch()
        assert lock.is_removed()


def test_a_lock_lives_on_in_an_inherited_descriptor(tmp_path: Path) -> None:
    first = FileLock(tmp_path / "lock")
    assert first.try_acquire()
    inherited = os.dup(first.fileno())
    first.close()
    with FileLock(tmp_path / "lock") as second:
        assert not second.try_acquire()
        os.close(inherited)
        assert second.try_acquire()


def test_closing_twice_is_harmless(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    lock.close()
    lock.close()


@pytest.mark.anyio
async def test_waiting_for_a_lock_does_not_block_the_loop(tmp_path: Path) -> None:
    order: list[str] = []

    async def wait() -> None:
        async with locked(tmp_path / "lock", poll_s=0.001):
            order.append("second")

    with FileLock(tmp_path / "lock") as first:
        assert first.try_acquire()
        waiter = asyncio.create_task(wait())
        await asyncio.sleep(0)
        order.append("first")
    await asyncio.wait_for(waiter, 5)
    assert order == ["first", "second"]
