"""Save the state of a VM that runs: its memory, its devices and its disk, as of one moment.

The VM stands still meanwhile. First its commands are frozen, so that what goes on from the saved state runs nothing
before it has an identity and entropy of its own. Then its vCPUs are paused. It goes on as soon as what it may change is
saved; the rest is added afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator

from squib.core.engine import Engine, RunningVM
from squib.core.snapshots import frozen
from squib.core.snapshots.frozen import Needs
from squib.core.snapshots.saved import MachineState
from squib.drivers.base import Complete, MachineSpec
from squib.errors import SquibError, Unsupported
from squib.host import files
from squib.models import VMState
from squib.paths import SavedPaths
from squib.store.records import VMRecord
from squib.undo import AsyncUndo, in_thread

log = logging.getLogger("squib.capture")


def check_can_save(engine: Engine, record: VMRecord) -> None:
    """Check that a VM's driver can save its memory. Raises `Unsupported`."""
    able = engine.drivers.get(record.driver).capabilities
    if not able.save:
        reason = f": {able.no_save}" if able.no_save else ""
        disk_only = f"squib snapshot create --disk-only {record.name} saves its disk"
        raise Unsupported(
            f"the driver {record.driver} cannot save the memory of VM {record.name}{reason}",
            hint=f"{able.save_hint}; {disk_only}" if able.save_hint else disk_only,
        )


async def capture(
    engine: Engine, record: VMRecord, spec: MachineSpec, paths: SavedPaths, *, disk: bool, sync: bool, go_on: bool
) -> MachineState:
    """Save a VM's memory and devices, and with ``disk`` its disk, as new files.

    With ``sync`` the disk alone has all that commands have written. The VM then goes on as before, also after an error.
    Without ``go_on`` it stays paused, with its commands frozen, even after an error: use `going_on_after_errors`. The
    caller has the VM's turn.

    Raises `Unsupported`, `DiskFull`, `HostError`, `AgentError`, and `ToolFailed` if the VMM does not answer.
    """
    check_can_save(engine, record)
    vm = engine.vm_of(record)
    fingerprint = await _fingerprint(engine, record, spec)
    complete: Complete
    async with _standing_still(engine, record, vm, sync=sync, go_on=go_on):
        complete = await vm.machine.save(paths.memory, paths.devices, size_mib=record.spec.mem_size_mib)
        if disk:
            await _copy_disk(engine, record, paths)
    await complete()
    return MachineState(mem_size_mib=record.spec.mem_size_mib, fingerprint=fingerprint)


async def capture_disk(engine: Engine, record: VMRecord, paths: SavedPaths, *, go_on: bool) -> None:
    """Save only the disk of a VM that runs, with all that its commands have written. Otherwise as `capture`."""
    vm = engine.vm_of(record)
    async with _standing_still(engine, record, vm, sync=True, go_on=go_on):
        await _copy_disk(engine, record, paths)


async def _fingerprint(engine: Engine, record: VMRecord, spec: MachineSpec) -> dict[str, str]:
    """Return what a VM was launched with. A VM of an older squib has the present VMM, if it was not upgraded."""
    try:
        noted = json.loads(engine.home.vm(record.vm_id).fingerprint.read_text())
        return {str(name): str(value) for name, value in noted.items()}
    except (OSError, ValueError, AttributeError):
        return await engine.drivers.get(record.driver).fingerprint(spec)


async def _copy_disk(engine: Engine, record: VMRecord, paths: SavedPaths) -> None:
    await in_thread(files.sparse_copy, engine.home.vm(record.vm_id).overlay, paths.overlay)


@contextlib.asynccontextmanager
async def _standing_still(
    engine: Engine, record: VMRecord, vm: RunningVM, *, sync: bool, go_on: bool
) -> AsyncIterator[None]:
    """Let the VM stand still in the block, with its commands frozen."""
    paths = engine.home.vm(record.vm_id)
    if not frozen.is_marked(paths):  # else it still needs what the mark says
        frozen.mark(paths, Needs.THAW)
    try:
        if record.state is VMState.PAUSED:
            await vm.machine.resume()  # for a moment, for its agent
        await vm.agent.freeze(sync=sync)
        await vm.machine.pause()
        yield
    finally:
        if go_on:
            await asyncio.shield(_go_on_again(engine, record))


def going_on_after_errors(engine: Engine, record: VMRecord) -> AsyncUndo:
    """Let a VM that `capture` has left standing still go on if the block fails."""
    return AsyncUndo(lambda: asyncio.shield(_go_on_again(engine, record)))


async def _go_on_again(engine: Engine, record: VMRecord) -> None:
    """Let a VM go on as before: paused if it was. Its commands are thawed when it runs.

    If that fails, it is tried again in the background.
    """
    vm = engine.running.get(record.vm_id)
    if vm is None or not frozen.is_marked(engine.home.vm(record.vm_id)):
        return  # it has ended, or does not stand still
    try:
        if record.state is VMState.PAUSED:
            await vm.machine.pause()  # a resume thaws
            return
        await vm.machine.resume()
        await frozen.thaw(engine, record.vm_id, vm)
    except SquibError as error:
        log.warning("VM %s does not go on yet: %s", record.vm_id, error.message)
        frozen.wake_later(engine, record.vm_id, vm)
