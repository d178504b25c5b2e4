"""`kill -9` of the engine before and after every single write to its database, through a VM's whole life."""

import asyncio
import itertools
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from squib.core.engine import Engine
from squib.core.lifecycle.create import create_vm
from squib.core.lifecycle.delete import delete_vm
from squib.core.lifecycle.release import release_owner
from squib.core.lifecycle.start import start_vm
from squib.core.lifecycle.stop import stop_vm
from squib.host import cgroup, proc
from squib.host.locks import FileLock
from squib.host.processes import Process
from squib.images.overlay import OverlayStore
from squib.models import VMState
from squib.store.database import Store
from squib.store.records import LeaseKind, Owner, OwnerKind
from tests.fakes.engine import Rig, StubRig, write_overlay


async def whole_life(engine: Engine, rig: Rig) -> None:
    await create_vm(engine, rig.config.model_copy(update={"vm_id": "first"}), start=False, on_progress=lambda _: None)
    await start_vm(engine, "first")
    await stop_vm(engine, "first")
    await create_vm(engine, rig.config.model_copy(update={"vm_id": "second"}), start=True, on_progress=lambda _: None)
    await delete_vm(engine, "second")
    await start_vm(engine, "first")
    await delete_vm(engine, "first")


async def life_of_other_owners(engine: Engine, rig: Rig) -> None:
    """An owner of every kind but VM takes a directory and two processes, and releases them."""
    for kind in set(OwnerKind) - {OwnerKind.VM}:
        owner = Owner(kind, "x")
        engine.store.add_lease(owner, LeaseKind.DIRECTORY, owner.key())
        engine.directory(owner).mkdir(parents=True)
        for role in ROLES:
            engine.store.add_lease(owner, LeaseKind.PROCESS, owner.key(role))
            start_helper(engine, owner, role)
        await release_owner(engine, owner)


def start_helper(engine: Engine, owner: Owner, role: str) -> Process:
    identity = engine.identity(owner, role)
    with FileLock(identity.lock_path) as lock:
        assert lock.try_acquire()
        return proc.spawn(["sleep", "60"], lock=lock, log_path=engine.directory(owner) / f"{role}.log")


ROLES = ("server", "proxy")
Life = Callable[[Engine, Rig], Awaitable[None]]


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


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
def test_the_life_of_a_firecracker_whatever_the_write_that_was_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    monkeypatch.setattr(OverlayStore, "create", write_overlay)
    jailer = os.geteuid() == 0 and not cgroup.find_layout().missing
    if not jailer:
        monkeypatch.setattr(cgroup, "find_layout", cgroup.Layout)
    rig = StubRig(tmp_path, jailer=jailer)
    try:
        check_every_write(rig, whole_life, after=after)
    finally:
        rig.clean_up()


@pytest.mark.slow
@pytest.mark.parametrize("life", [whole_life, life_of_other_owners])
@pytest.mark.parametrize("after", [False, True])
def test_whatever_the_write_that_was_the_last(rig: Rig, life: Life, after: bool) -> None:
    check_every_write(rig, life, after=after)


def check_every_write(rig: Rig, life: Life, *, after: bool) -> None:
    """Live a life again and again, each time killed at the next write."""
    killed = 0
    for number in itertools.count(1):
        if not live_and_die(rig, life, number, after=after):
            break
        killed += 1
        asyncio.run(check_and_clean(rig))
    assert killed > 20  # both lives write more often than that


async def check_and_clean(rig: Rig) -> None:
    """The next engine finds VMs that are usable, or nothing of them; then nothing is left."""
    async with asyncio.timeout(20), rig.engine() as engine:
        records = engine.store.list_vms()
        assert {record.state for record in records} <= {VMState.CREATED, VMState.STOPPED, VMState.RUNNING}
        assert sorted(path.name for path in rig.home.vms.iterdir()) == sorted(record.vm_id for record in records)
        running = [record for record in records if record.state is VMState.RUNNING]
        assert len(rig.vmms()) == len(running) == len(engine.running)
        kinds = [lease.kind for lease in engine.store.leases()]
        assert kinds.count(LeaseKind.DIRECTORY) == len(records)
        assert kinds.count(LeaseKind.PROCESS) == kinds.count(LeaseKind.CGROUP) == len(running)
        for record in records:
            assert (await start_vm(engine, record.vm_id)).state is VMState.RUNNING
            await delete_vm(engine, record.vm_id)
        assert (rig.vmms(), engine.store.leases(), list(rig.home.vms.iterdir())) == ([], [], [])
        for kind in set(OwnerKind) - {OwnerKind.VM}:
            owner = Owner(kind, "x")
            assert not engine.directory(owner).exists()
        assert helpers(rig) == []


def helpers(rig: Rig) -> list[str]:
    """The command lines of processes that log into the state directory."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdecimal() and os.readlink(entry / "fd" / "1").startswith(str(rig.home.root)):  # noqa: PTH115
                found.append((entry / "cmdline").read_bytes().decode())
    return found


@pytest.mark.parametrize("killed", ROLES)
@pytest.mark.anyio
async def test_an_owner_whose_process_was_killed_is_released(rig: Rig, killed: str) -> None:
    async with rig.running() as engine:
        owner = Owner(OwnerKind.TEMPLATE, "x")
        engine.store.add_lease(owner, LeaseKind.DIRECTORY, owner.key())
        engine.directory(owner).mkdir(parents=True)
        processes = {}
        for role in ROLES:
            engine.store.add_lease(owner, LeaseKind.PROCESS, owner.key(role))
            processes[role] = start_helper(engine, owner, role)
        await processes[killed].kill()
        await release_owner(engine, owner)
        for process in processes.values():
            await process.wait()
        assert (engine.store.leases(), engine.directory(owner).exists(), helpers(rig)) == ([], False, [])
