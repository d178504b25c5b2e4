"""`kill -9` of an engine just before, or just after, each write to its database; then check what the next one finds."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from squib.core.engine import Engine
from squib.core.lifecycle.delete import delete_vm
from squib.core.lifecycle.start import start_vm
from squib.models import VMState
from squib.store.database import Store
from squib.store.records import LeaseKind, Owner, OwnerKind
from tests.fakes.engine import Rig

Life = Callable[[Engine, Rig], Awaitable[None]]
CHECK_TIMEOUT_S = 20.0


def check_every_write(rig: Rig, life: Life, *, after: bool, step: int = 1, patience: float = 1) -> int:
    """Live a life again and again, each time killed at the next write; return how many times it was killed.

    With a ``step``, writes between are left out.
    """
    for killed, number in enumerate(itertools.count(1, step)):
        if not live_and_die(rig, life, number, after=after):
            return killed
        asyncio.run(check_and_clean(rig, CHECK_TIMEOUT_S * patience))
    raise AssertionError


def live_and_die(rig: Rig, life: Life, number: int, *, after: bool) -> bool:
    """Live a whole life in a child that is killed at a write; whether there was such a write."""
    child = os.fork()
    if child == 0:
        status = 1
        try:

            async def main() -> None:
                async with rig.engine() as engine:
                    await life(engine, rig)

            with kill_at_write(number, after=after):
                asyncio.run(main())
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL, f"the child ended with {status}"
    return status != 0


@contextmanager
def kill_at_write(number: int, *, after: bool) -> Iterator[None]:
    """In a child: die just before, or just after, the write of this number."""
    transaction = Store._transaction
    count = itertools.count(1)

    @contextmanager
    def counted(self: Store) -> Iterator[None]:
        mine = next(count) == number
        if mine and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        with transaction(self):
            yield
        if mine:
            os.kill(os.getpid(), signal.SIGKILL)

    Store._transaction = counted  # type: ignore[method-assign]
    try:
        yield
    finally:
        Store._transaction = transaction  # type: ignore[method-assign]


async def check_and_clean(rig: Rig, timeout_s: float) -> None:
    """The next engine finds VMs that are usable, or nothing of them; then nothing is left."""
    async with asyncio.timeout(timeout_s), rig.engine() as engine:
        records = engine.store.list_vms()
        assert {record.state for record in records} <= {VMState.CREATED, VMState.STOPPED, VMState.RUNNING}
        assert sorted(path.name for path in rig.home.vms.iterdir()) == sorted(record.vm_id for record in records)
        running = [record for record in records if record.state is VMState.RUNNING]
        assert len(rig.vmms()) == len(running) == len(engine.running)
        kinds = [lease.kind for lease in engine.store.leases()]
        assert kinds.count(LeaseKind.DIRECTORY) == len(records)
        assert kinds.count(LeaseKind.PROCESS) == kinds.count(LeaseKind.CGROUP) == len(running)
        for record in records:
            assert (await start_vm(engine, record.vm_id, boot_timeout_s=timeout_s)).state is VMState.RUNNING
            await delete_vm(engine, record.vm_id)
        assert (rig.vmms(), engine.store.leases(), list(rig.home.vms.iterdir())) == ([], [], [])
        for kind in set(OwnerKind) - {OwnerKind.VM}:
            assert not engine.directory(Owner(kind, "x")).exists()
        assert helpers(rig) == []


def helpers(rig: Rig) -> list[str]:
    """The command lines of processes that log into the state directory."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdecimal() and os.readlink(entry / "fd" / "1").startswith(str(rig.home.root)):  # noqa: PTH115
                found.append((entry / "cmdline").read_bytes().decode())
    return found
