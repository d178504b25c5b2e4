"""Boot a VM, or clone it from a template.

A new VM is cloned from a template if there is one, and leaves one if not (`squib.core.snapshots.templates`).
A VM with a saved state goes on from it (`squib.core.lifecycle.go_on`).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import replace

from squib.core.engine import Engine, RunningVM
from squib.core.lifecycle import transitions
from squib.core.lifecycle.go_on import go_on
from squib.core.lifecycle.launch import launch, machine_spec, until_set_up, watch
from squib.core.lifecycle.release import RUN, release
from squib.core.snapshots import frozen, saved, templates
from squib.drivers.base import ExitKind, MachineSpec
from squib.errors import BootFailed, BootTimeout, SquibError, WrongState
from squib.guest.agent import Identity
from squib.models import VMState
from squib.store.database import now
from squib.store.records import VMRecord
from squib.undo import AsyncUndo, in_thread

log = logging.getLogger("squib.boot")

DEFAULT_BOOT_TIMEOUT_S = 30.0
FIRST_UID = 0x7000_0000
"""The first uid for VMMs of a root engine. systemd's document UIDS-GIDS leaves this range unused."""
UID_COUNT = 0x0800_0000

_CLONE_RETRY_S = 1.0
_CLONE_SHARE = 0.5
"""The share of the boot timeout after which a clone is given up, and the VM boots."""
_FAIR_CLONE_TIMEOUT_S = 10.0
"""A clone needs less than a second. A template whose clone is not ready within this time is not used again."""
_LEAVE_SHARE = 0.5
"""The share of what is left of the boot timeout after which the VM goes on without leaving a template."""
_HINT = "use a longer timeout (--boot-timeout 120); squib doctor checks the host"


async def boot(engine: Engine, record: VMRecord, *, boot_timeout_s: float, is_new: bool) -> None:
    """Start a VM's VMM, wait for its agent, and set the VM to ``running``.

    A VM with a saved state goes on from it. One that ``is_new``, with an empty disk, may be a clone of a template.

    The caller has the VM's turn. A failure or a cancellation releases all resources that were taken, and the caller
    then settles the state. Only a VM that goes on from a saved state may be ``running`` after an error.
    """
    paths = engine.home.vm(record.vm_id)
    frozen.unmark(paths)
    state = saved.find(paths)
    async with engine.boot_slots:
        if state and state.machine:
            await go_on(engine, record, state.machine, boot_timeout_s, same_boot=state.same_boot)
            return
        # Shielded: a cancelled start must not leave its VMM behind.
        async with AsyncUndo(lambda: asyncio.shield(release(engine, record.vm_id, RUN))):
            vm = await _boot_or_clone(engine, record, boot_timeout_s, is_new=is_new)
            vm.known_env = record.spec.env_vars
            transitions.transition(engine.store, record, VMState.RUNNING, started_at=now(), stopped_at=None)
            watch(engine, record.vm_id, vm)


async def _boot_or_clone(engine: Engine, record: VMRecord, timeout_s: float, *, is_new: bool) -> RunningVM:
    await in_thread(saved.drop_memory, engine.home.vm(record.vm_id))
    spec = await machine_spec(engine, record)
    wanted = await templates.template_id(engine, record, spec) if is_new else None
    deadline = time.monotonic() + timeout_s
    vm = await _clone(engine, record, spec, wanted, timeout_s * _CLONE_SHARE) if wanted else None
    return vm or await _run_until_ready(engine, record, spec, deadline - time.monotonic(), leave_template=wanted)


async def template_of(engine: Engine, record: VMRecord) -> str | None:
    """Return the ID of the template that a new VM like this one is cloned from, or ``None`` if it would boot."""
    return await templates.template_id(engine, record, await machine_spec(engine, record))


async def _clone(
    engine: Engine, record: VMRecord, spec: MachineSpec, template_id: str, timeout_s: float
) -> RunningVM | None:
    """Run a new VM from its template. Return ``None`` if there is no template, or if the clone does not run.

    After ``None``, the VM's disk is empty, as it was before. A template whose clone does not run is removed.

    Raises `WrongState`.
    """
    await templates.finished(engine, template_id)
    template = templates.find(engine, template_id)
    if template is None:
        return None
    overlay = engine.home.vm(record.vm_id).overlay
    try:
        await in_thread(templates.replace_disk, template.paths.overlay, overlay)
        vm = await launch(engine, record, replace(spec, memory=template.memory))
        await vm.machine.resume()
        await _wait_until_ready(engine, record, vm, timeout_s, retry_s=_CLONE_RETRY_S)
    except WrongState:
        raise
    except (SquibError, OSError) as error:
        detail = error.detail if isinstance(error, SquibError) else ""
        log.warning("VM %s could not be cloned from template %s: %s\n%s", record.vm_id, template.id, error, detail)
        if _is_to_blame(error, timeout_s):
            templates.drop(template.paths, "its clone does not run")
        await release(engine, record.vm_id, RUN)
        empty = overlay.with_name(f"{overlay.name}.empty")
        empty.unlink(missing_ok=True)
        await engine.overlays.create(empty, record.spec.disk_size_mib)
        empty.replace(overlay)
        return None
    return vm


def _is_to_blame(error: SquibError | OSError, timeout_s: float) -> bool:
    """Return whether a clone failed because of its template, not of this host or of a short timeout."""
    return isinstance(error, BootFailed) or (isinstance(error, BootTimeout) and timeout_s >= _FAIR_CLONE_TIMEOUT_S)


async def _run_until_ready(
    engine: Engine, record: VMRecord, spec: MachineSpec, timeout_s: float, *, leave_template: str | None
) -> RunningVM:
    """Launch the VMM and wait until the agent is ready. Make the template of this ID, if one is given.

    If the guest's kernel panics before the agent has ever answered, the VM is booted a second time: QEMU before 8.1
    emulates several CPUs with a fault that makes a boot panic now and then (ARCHITECTURE.md, "Boots that panic").
    """
    deadline = time.monotonic() + timeout_s
    vm = await launch(engine, record, spec)
    try:
        await _wait_until_ready(engine, record, vm, timeout_s, leave_template=leave_template)
    except BootFailed as error:
        panicked = (await vm.machine.wait()).kind is ExitKind.GUEST_PANICKED
        if not panicked or vm.agent.has_answered:
            raise
        log.warning("VM %s is booted again: %s\n%s", record.vm_id, error.message, error.detail)
        await release(engine, record.vm_id, RUN)
        vm = await launch(engine, record, spec)
        left_s = deadline - time.monotonic()
        await _wait_until_ready(engine, record, vm, left_s, leave_template=leave_template)
    return vm


def choose_uid() -> int:
    """Choose a random uid for a new VM's VMM.

    Several engines on a host then rarely choose the same.
    """
    return FIRST_UID + random.SystemRandom().randrange(UID_COUNT)


async def _wait_until_ready(
    engine: Engine,
    record: VMRecord,
    vm: RunningVM,
    timeout_s: float,
    *,
    retry_s: float | None = None,
    leave_template: str | None = None,
) -> None:
    """Wait until the agent has responded and was given the VM's identity.

    Raises `BootFailed` if the VMM ends first, `BootTimeout`.
    """

    async def set_up() -> None:
        deadline = time.monotonic() + timeout_s
        await vm.agent.shake_hands(timeout_s=timeout_s, retry_s=retry_s or timeout_s)
        if leave_template:
            await vm.agent.connect(timeout_s=max(0, deadline - time.monotonic()))  # clones have run this already
            left_s = deadline - time.monotonic()
            await templates.leave(engine, leave_template, record, vm, timeout_s=left_s * _LEAVE_SHARE)
            await vm.agent.shake_hands(timeout_s=max(0, deadline - time.monotonic()))
        identity = Identity(record.vm_id, record.name, record.machine_id)
        await vm.agent.setup(identity, env=record.spec.env_vars)

    await until_set_up(record, vm, set_up(), timeout_s=timeout_s, hint=_HINT)
