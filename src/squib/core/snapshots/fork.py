"""``fork``: make more VMs of one that runs, each with its memory and its disk."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from squib.core.engine import Engine
from squib.core.lifecycle import transitions
from squib.core.lifecycle.boot import DEFAULT_BOOT_TIMEOUT_S
from squib.core.lifecycle.create import add_vm, new_id, new_record
from squib.core.lifecycle.delete import delete_vm
from squib.core.lifecycle.launch import machine_spec
from squib.core.lifecycle.verbs import Turn
from squib.core.snapshots import catalog
from squib.core.snapshots.capture import capture
from squib.core.snapshots.from_snapshot import fill_from
from squib.core.snapshots.saved import MachineState
from squib.errors import HostError, InvalidArgument, SquibError
from squib.models import check_name
from squib.paths import SavedPaths, VMPaths
from squib.store.records import Owner, VMRecord
from squib.undo import AsyncUndo

_COPIES_AT_ONCE = 2


async def fork_vm(
    engine: Engine,
    ref: str,
    *,
    count: int = 1,
    name: str | None = None,
    ephemeral: bool = True,
    boot_timeout_s: float = DEFAULT_BOOT_TIMEOUT_S,
) -> list[VMRecord | SquibError]:
    """Fork the VM ``ref``: return ``count`` running VMs that go on from its state, or why one could not be made.

    The VM stands still only while what it may change is saved. Its forks have an identity of their own, and run nothing
    before that. An ``ephemeral`` fork is deleted with its parent, and when it stops. A single fork is called ``name``,
    and several ``name-1``, ``name-2`` and so on.

    Raises `NameTaken`, `InvalidArgument`, `WrongState` if the VM does not run, `NotFound`, `Unsupported`, `DiskFull`,
    `HostError`, `AgentError`. Then no fork was made.
    """
    vm_id = engine.store.get_vm(ref).vm_id
    ids = [new_id() for _ in range(count)]
    names = _names(ids, name)
    for fork_id, fork_name in zip(ids, names, strict=True):
        engine.store.check_free(fork_id, fork_name)
    async with catalog.filling(engine.home) as paths:

        async def fork(turn: Turn) -> tuple[VMRecord, MachineState]:
            record = engine.store.get_vm(vm_id)
            if record.state not in transitions.UP:
                raise transitions.wrong_state(record, "fork it")
            spec = await machine_spec(engine, record)
            machine = await capture(engine, record, spec, paths, disk=True, sync=False, go_on=True)
            return record, machine

        parent, machine = await engine.verbs.run(vm_id, "fork", fork)
        source = _Source(parent, paths, machine, asyncio.Semaphore(_COPIES_AT_ONCE))
        making = [
            asyncio.create_task(
                _make(engine, source, fork_id, fork_name, ephemeral, boot_timeout_s), name=f"fork {fork_id}"
            )
            for fork_id, fork_name in zip(ids, names, strict=True)
        ]
        async with AsyncUndo(lambda: asyncio.shield(_remove_all(engine, making))):
            await asyncio.wait(making)
            return [task.result() for task in making]


@dataclass(frozen=True)
class _Source:
    parent: VMRecord
    paths: SavedPaths
    machine: MachineState
    copying: asyncio.Semaphore
    """Limits how many disks are copied at once: all copies together are as slow, and other VMs need threads too."""


def _names(ids: list[str], name: str | None) -> list[str]:
    """Return the names of the forks. Raises `InvalidArgument`."""
    if len(ids) == 1:
        return [name or ids[0]]
    if name is None:
        return ids
    try:
        return [check_name(f"{name}-{number}") for number in range(1, len(ids) + 1)]
    except ValueError as error:
        raise InvalidArgument(str(error), hint="use a shorter name") from None


async def _remove_all(engine: Engine, making: list[asyncio.Task[VMRecord | SquibError]]) -> None:
    """Remove the forks of a call that was cancelled or has failed: nobody knows of them."""
    for task in making:
        task.cancel()
    for made in await asyncio.gather(*making, return_exceptions=True):
        if isinstance(made, VMRecord):
            with contextlib.suppress(SquibError):
                await delete_vm(engine, made.vm_id)


async def _make(
    engine: Engine, source: _Source, vm_id: str, name: str, ephemeral: bool, boot_timeout_s: float
) -> VMRecord | SquibError:
    """Make one fork. An error is returned, since the others are not affected."""
    parent = source.parent
    spec = parent.spec.model_copy(update={"parent": Owner.vm(parent.vm_id).key(), "ephemeral": ephemeral})
    record = new_record(vm_id, name, spec, parent.driver, parent.accelerator)

    async def fill(vm: VMPaths) -> None:
        async with source.copying:
            await fill_from(vm, source.paths, source.machine, durable=False)

    try:
        return await add_vm(engine, record, fill, start=True, boot_timeout_s=boot_timeout_s)
    except SquibError as error:
        return error
    except OSError as error:
        return HostError(f"VM {name} could not be made: {error}", hint="squib logs --engine")
