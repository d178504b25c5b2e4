"""`kill -9` of an engine at each write to its database, or each change of a directory; and what the next one finds."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from squib.core.engine import Engine
from squib.core.lifecycle.delete import delete_vm
from squib.core.lifecycle.start import start_vm
from squib.core.snapshots import catalog
from squib.core.snapshots.snapshot import delete_snapshot
from squib.errors import NotFound
from squib.host import files
from squib.models import VMState
from squib.store.database import Store
from squib.store.records import LeaseKind, Owner, OwnerKind
from tests.fakes.engine import Rig

Life = Callable[[Engine, Rig], Awaitable[None]]
USABLE = {VMState.CREATED, VMState.STOPPED, VMState.SUSPENDED, VMState.RUNNING}
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link")
CHECK_TIMEOUT_S = 20.0


def check_every_write(rig: Rig, life: Life, *, after: bool, step: int = 1, patience: float = 1) -> int:
    """Live a life again and again, each time killed at the next write; return how many times it was killed.

    With a ``step``, writes between are left out.
    """
    return _check_each(rig, life, lambda number: kill_at_write(number, after=after), step, patience)


def check_every_change_of_a_directory(rig: Rig, life: Life) -> int:
    """Live a life again and again, each time killed before the next change of a directory; return how many times."""
    return _check_each(rig, life, lambda number: kill_at_change(number, rig.home.root), 1, 1)


def _check_each(
    rig: Rig, life: Life, kill_at: Callable[[int], AbstractContextManager[None]], step: int, patience: float
) -> int:
    for killed, number in enumerate(itertools.count(1, step)):
        if not live_and_die(rig, life, kill_at(number)):
            return killed
        asyncio.run(check_and_clean(rig, CHECK_TIMEOUT_S * patience))
    raise AssertionError


def live_and_die(rig: Rig, life: Life, killing: AbstractContextManager[None]) -> bool:
    """Live a whole life in a child that is killed in the block ``killing``; whether it was."""
    child = os.fork()
    if child == 0:
        status = 1
        try:

            async def main() -> None:
                async with rig.engine() as engine:
                    await life(engine, rig)

            with killing:
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


@contextmanager
def kill_at_change(number: int, root: Path) -> Iterator[None]:
    """In a child: die just before the change of this number in a directory below ``root``, in whatever thread."""
    count = itertools.count(1)

    def hook(event: str, args: tuple[object, ...]) -> None:
        if event in CHANGES and str(root) in str(args[:2]) and next(count) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)  # it stays until the child's end
    yield


async def check_and_clean(rig: Rig, timeout_s: float) -> None:
    """The next engine finds VMs that are usable, or nothing of them; then nothing is left."""
    async with asyncio.timeout(timeout_s), rig.engine() as engine:
        for record in engine.store.list_vms():
            if record.spec.ephemeral:  # the engine may be deleting it too
                with suppress(NotFound):
                    await delete_vm(engine, record.vm_id)
        records = engine.store.list_vms()
        assert {record.state for record in records} <= USABLE
        for snapshot in catalog.all_snapshots(engine.home):
            digests = {path.name: files.sparse_sha256(path) for path in snapshot.paths.files if path.exists()}
            assert snapshot.manifest.digests == digests
            await delete_snapshot(engine, snapshot.id)
        assert list(engine.home.snapshots.iterdir()) == []
        assert sorted(path.name for path in rig.home.vms.iterdir()) == sorted(record.vm_id for record in records)
        running = [record for record in records if record.state is VMState.RUNNING]
        for record in running:
            while engine.home.vm(record.vm_id).frozen_mark.exists():
                await asyncio.sleep(0.01)
            await engine.running[record.vm_id].agent.processes()
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
        assert all(entry.name for entry in (*engine.images.list(), *engine.kernels.list()))


def helpers(rig: Rig) -> list[str]:
    """The command lines of processes that log into the state directory."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdecimal() and os.readlink(entry / "fd" / "1").startswith(str(rig.home.root)):  # noqa: PTH115
                found.append((entry / "cmdline").read_bytes().decode())
    return found
