"""Bonds: a VM of `squib run` or ``with VM()`` is deleted with its client.

The database stores that a VM is bound, from its creation on. A client holds a bound VM with a request that stays open.
When the last such request ends because its client has disconnected or ended, the VM is deleted. It is also deleted if
no client holds it within `GRACE_S` after its creation or an engine's start. So a bound VM does not outlive its client,
even if engine and client are killed in any order. A client that wants the VM to live on releases it.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from squib.core.engine import Engine
from squib.core.lifecycle.delete import delete_vm, wait_deleted
from squib.errors import NotFound, RecordCorrupt

log = logging.getLogger("squib.bonds")

GRACE_S = 10.0
"""The time in seconds that a client has to reconnect to a new engine. It retries several times a second."""


async def hold_vm(engine: Engine, ref: str, *, if_bound: bool = False) -> None:
    """Bind the VM ``ref`` to the caller and wait until it has been deleted.

    With ``if_bound``, return at once if it is not bound.

    Raises `NotFound`, `DiskFull`.
    """
    vm_id = engine.store.find(ref).vm_id
    if not engine.store.get_vm(vm_id).bound:
        if if_bound:
            return
        engine.on_needed(True)
        engine.store.set_bound(vm_id, True)
    engine.holders[vm_id] += 1
    try:
        await wait_deleted(engine, vm_id)
    finally:
        engine.holders[vm_id] -= 1


async def release_vm(engine: Engine, ref: str) -> None:
    """Make the VM ``ref`` independent of the clients that hold it.

    Raises `NotFound`, `DiskFull`.
    """
    engine.store.set_bound(engine.store.get_vm(ref).vm_id, False)


async def client_left(engine: Engine, ref: str) -> None:
    """Delete a bound VM after its client has left, unless others hold it."""
    with suppress(NotFound, RecordCorrupt):
        record = engine.store.get_vm(ref)
        if record.bound and not engine.holders[record.vm_id]:
            await delete_vm(engine, record.vm_id)


def expect_client(engine: Engine, vm_id: str) -> None:
    """Delete a bound VM if no client holds it within `GRACE_S`."""
    engine.background(_delete_unless_held(engine, vm_id), name=f"bond of {vm_id}")


async def _delete_unless_held(engine: Engine, vm_id: str) -> None:
    await asyncio.sleep(GRACE_S)
    with suppress(NotFound, RecordCorrupt):
        if engine.store.get_vm(vm_id).bound and not engine.holders[vm_id]:
            log.info("deleting VM %s: the client that it is bound to is gone", vm_id)
            await delete_vm(engine, vm_id)
