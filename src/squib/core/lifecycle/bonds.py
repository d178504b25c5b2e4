"""Bonds: a VM that lives only as long as the client that made it, as in `squib run` and ``with VM()``.

That a VM is bound is stored with it. A client holds a bound VM by a request that stays open. When the last such request
ends because its client is gone, the VM is deleted. If nobody holds it for `GRACE_S` after it was created, or after an
engine has started, it is deleted too: whatever is killed, in whatever order, a bound VM does not outlive its client.
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
"""For a client to come back after its engine was replaced; it tries again several times a second."""


async def hold_vm(engine: Engine, ref: str) -> None:
    """Bind the VM ``ref`` to the caller, and return when it has been deleted. Raises `NotFound`, `DiskFull`."""
    vm_id = engine.store.find(ref).vm_id
    engine.store.set_bound(vm_id)
    engine.holders[vm_id] += 1
    try:
        await wait_deleted(engine, vm_id)
    finally:
        engine.holders[vm_id] -= 1


async def client_left(engine: Engine, ref: str) -> None:
    """Delete the VM ``ref``, whose client is gone, unless another client holds it."""
    with suppress(NotFound):
        if not engine.holders[engine.store.find(ref).vm_id]:
            await delete_vm(engine, ref)


def expect_client(engine: Engine, vm_id: str) -> None:
    """Delete a bound VM if no client holds it within `GRACE_S`."""
    engine.background(_delete_unless_held(engine, vm_id), name=f"bond of {vm_id}")


async def _delete_unless_held(engine: Engine, vm_id: str) -> None:
    await asyncio.sleep(GRACE_S)
    with suppress(NotFound, RecordCorrupt):
        if engine.store.get_vm(vm_id).bound and not engine.holders[vm_id]:
            log.info("VM %s is deleted: the client that it is bound to is gone", vm_id)
            await delete_vm(engine, vm_id)
