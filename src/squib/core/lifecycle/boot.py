"""Boot a VM: launch its VMM, wait until its agent is ready, and watch for its end.

A new VM is cloned from a template if there is one, and leaves one if not (`squib.core.snapshots.templates`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from dataclasses import replace
from pathlib import Path

from squib.core.engine import VMM, Engine, RunningVM
from squib.core.lifecycle import transitions
from squib.core.lifecycle.release import RUN, release
from squib.core.lifecycle.verbs import Turn
from squib.core.snapshots import templates
from squib.drivers.base import Disk, Driver, ExitKind, FreshMemory, Machine, MachineSpec
from squib.errors import AgentUnreachable, BootFailed, BootTimeout, SquibError, Superseded, WrongState
from squib.guest.agent import AgentClient
from squib.host import cgroup
from squib.host.files import disk_errors
from squib.host.jail import Credentials
from squib.images import rootfs
from squib.kernels import user
from squib.kernels.catalog import Kernel
from squib.models import AssetRef, HostFileRef, VMState
from squib.protocol.text import printable_lines
from squib.store.database import now
from squib.store.records import LeaseKind, Owner, VMRecord
from squib.undo import AsyncUndo

log = logging.getLogger("squib.boot")

DEFAULT_BOOT_TIMEOUT_S = 30.0
FIRST_UID = 0x7000_0000
"""The first uid for VMMs of a root engine. systemd's document UIDS-GIDS leaves this range unused."""
UID_COUNT = 0x0800_0000

_VMM_EXTRA_CPUS = 0.5
_VMM_PIDS = 256
_END_GRACE_S = 1.0
_CLONE_RETRY_S = 1.0
_CLONE_SHARE = 0.5
"""The share of the boot timeout after which a clone is given up, and the VM boots."""
_FAIR_CLONE_TIMEOUT_S = 10.0
"""A clone needs less than a second. A template whose clone is not ready within this time is not used again."""
_LEAVE_SHARE = 0.5
"""The share of what is left of the boot timeout after which the VM goes on without leaving a template."""
_SHOWN_LINES = 30
_SHOWN_BYTES = 16 * 1024


async def boot(engine: Engine, record: VMRecord, *, boot_timeout_s: float, is_new: bool) -> None:
    """Start a VM's VMM, wait for its agent, and set the VM to ``running``.

    A VM that ``is_new``, with an empty disk, may be a clone of a template instead.

    The caller has the VM's turn. A failure or a cancellation releases all resources that were taken. The caller then
    settles the state.
    """
    # Shielded: a cancelled start must not leave its VMM behind.
    async with AsyncUndo(lambda: asyncio.shield(release(engine, record.vm_id, RUN))):
        spec = await _machine_spec(engine, record)
        wanted = templates.template_id(engine, record, spec) if is_new else None
        async with engine.boot_slots:
            deadline = time.monotonic() + boot_timeout_s
            vm = await _clone(engine, record, spec, wanted, boot_timeout_s * _CLONE_SHARE) if wanted else None
            left_s = deadline - time.monotonic()
            vm = vm or await _run_until_ready(engine, record, spec, left_s, leave_template=wanted)
            vm.known_env = record.spec.env_vars
        transitions.transition(engine.store, record, VMState.RUNNING, started_at=now(), stopped_at=None)
        watch(engine, record.vm_id, vm)


async def template_of(engine: Engine, record: VMRecord) -> str | None:
    """Return the ID of the template that a new VM like this one is cloned from, or ``None`` if it would boot."""
    return templates.template_id(engine, record, await _machine_spec(engine, record))


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
        await asyncio.to_thread(templates.replace_disk, template.paths.overlay, overlay)
        vm = await _launch(engine, record, replace(spec, memory=template.memory))
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
    vm = await _launch(engine, record, spec)
    try:
        await _wait_until_ready(engine, record, vm, timeout_s, leave_template=leave_template)
    except BootFailed as error:
        panicked = (await vm.machine.wait()).kind is ExitKind.GUEST_PANICKED
        if not panicked or vm.agent.has_answered:
            raise
        log.warning("VM %s is booted again: %s\n%s", record.vm_id, error.message, error.detail)
        await release(engine, record.vm_id, RUN)
        vm = await _launch(engine, record, spec)
        left_s = deadline - time.monotonic()
        await _wait_until_ready(engine, record, vm, left_s, leave_template=leave_template)
    return vm


async def _machine_spec(engine: Engine, record: VMRecord) -> MachineSpec:
    spec = record.spec
    kernel = await asyncio.to_thread(_find_kernel, engine, spec.kernel)
    base = await asyncio.to_thread(_find_rootfs, engine, spec.rootfs)
    return MachineSpec(
        vm_id=record.vm_id,
        vcpu_count=spec.vcpu_count,
        memory=FreshMemory(spec.mem_size_mib),
        kernel=kernel.path,
        initramfs=await engine.initramfs.ensure(
            kernel, engine.agent_binary, extras=extra_modules(engine.drivers.get(record.driver), nested=spec.nested)
        ),
        disks=(
            Disk("base", base, read_only=True),
            Disk("overlay", engine.home.vm(record.vm_id).overlay, read_only=False),
        ),
        boot_args=spec.boot_args,
        nested=spec.nested,
        jailer=spec.jailer,
    )


def extra_modules(driver: Driver, *, nested: bool) -> tuple[str, ...]:
    """Return the sets of kernel modules that a VM's guest loads besides the usual ones."""
    return (*driver.guest_modules, *(("nested",) if nested else ()))


def _find_kernel(engine: Engine, ref: AssetRef) -> Kernel:
    """Return the kernel of a VM.

    Raises `NotFound`, `ImageCorrupt`, `InvalidArgument`.
    """
    return user.inspect(Path(ref.path)) if isinstance(ref, HostFileRef) else engine.kernels.get(ref.digest)


def _find_rootfs(engine: Engine, ref: AssetRef) -> Path:
    """Return the root filesystem of a VM. Raises as `_find_kernel`."""
    return rootfs.inspect(Path(ref.path)).path if isinstance(ref, HostFileRef) else engine.images.get(ref.digest).path


async def _launch(engine: Engine, record: VMRecord, spec: MachineSpec) -> RunningVM:
    driver = engine.drivers.get(record.driver)
    limits = cgroup.Limits(
        memory_mib=spec.memory.size_mib + driver.memory_overhead_mib(spec),
        cpus=spec.vcpu_count + _VMM_EXTRA_CPUS,
        pids=_VMM_PIDS,
    )
    owner, name = Owner.vm(record.vm_id), engine.cgroup_name(record.vm_id)
    engine.store.add_lease(owner, LeaseKind.CGROUP, name)
    cgroup.create(engine.cgroups, name, limits)
    engine.store.add_lease(owner, LeaseKind.PROCESS, owner.key(VMM))

    def on_spawned(pid: int) -> None:
        engine.store.set_pid(record.vm_id, pid)

    credentials = Credentials(record.uid, record.uid, driver.groups) if record.uid is not None else None
    folder = engine.driver_folder(record)
    with disk_errors(folder.parent):
        folder.mkdir(mode=0o700, exist_ok=True)
    engine.on_needed(True)
    with disk_errors(folder):
        machine = await driver.launch(spec, folder, engine.vmm_identity(record.vm_id), credentials, on_spawned)
    vm = engine.running[record.vm_id] = RunningVM(machine, AgentClient(machine.connect_agent))
    return vm


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
        await vm.agent.connect(timeout_s=timeout_s, retry_s=retry_s or timeout_s)
        if leave_template:
            left_s = deadline - time.monotonic()
            await templates.leave(engine, leave_template, record, vm, timeout_s=left_s * _LEAVE_SHARE)
            await vm.agent.connect(timeout_s=max(0, deadline - time.monotonic()))
        await vm.agent.setup(hostname=record.name, machine_id=record.machine_id, env=record.spec.env_vars)

    ready = asyncio.create_task(set_up())
    ended = asyncio.create_task(vm.machine.wait())
    try:
        await asyncio.wait({ready, ended}, return_when=asyncio.FIRST_COMPLETED)
        if ready.done() and isinstance(ready.exception(), AgentUnreachable):
            # When a VMM ends, the agent's port closes first. The end of the VMM explains more, so wait for it.
            await asyncio.wait({ended}, timeout=_END_GRACE_S)
        if ended.done():
            raise BootFailed(
                f"VM {record.name} ended while it booted: {ended.result().text}",
                detail=_tail(vm.machine),
                hint="check that kernel and root filesystem are bootable; squib doctor checks squib's own",
            )
        ready.result()
    except AgentUnreachable as error:
        raise BootTimeout(
            f"VM {record.name} was not ready within {timeout_s:.3g} s: {error.message}",
            detail=_tail(vm.machine),
            hint="use a longer timeout (--boot-timeout 120); squib doctor checks the host",
        ) from error
    finally:
        for task in (ready, ended):
            task.cancel()
        await asyncio.gather(ready, ended, return_exceptions=True)


def _tail(machine: Machine) -> str:
    console = printable_lines(machine.console_tail(_SHOWN_BYTES, lines=_SHOWN_LINES).decode(errors="replace"))
    shown = "\n".join(f"  {line}" for line in console.rstrip().split("\n"))
    return f"last lines of its console:\n{shown}" if shown.strip() else "its console is empty"


def watch(engine: Engine, vm_id: str, vm: RunningVM) -> None:
    """Start a task that settles the VM's state when its VMM ends."""
    vm.watcher = asyncio.create_task(_settle_when_it_ends(engine, vm_id, vm), name=f"watch {vm_id}")


async def _settle_when_it_ends(engine: Engine, vm_id: str, vm: RunningVM) -> None:
    reason = await vm.machine.wait()

    async def settle(turn: Turn) -> None:
        if engine.running.get(vm_id) is not vm:
            return  # a stop or delete has settled it
        state = VMState.STOPPED if reason.kind is ExitKind.POWERED_OFF else VMState.ERROR
        engine.store.change_state(
            vm_id, expected=transitions.UP, to=state, reason=reason.text, pid=None, stopped_at=now()
        )
        log.info("VM %s is %s: %s", vm_id, state, reason.text)
        await release(engine, vm_id, RUN)

    with contextlib.suppress(Superseded):  # by a stop or delete, which settles it
        await engine.verbs.run(vm_id, "settle", settle)


def choose_uid() -> int:
    """Choose a random uid for a new VM's VMM.

    Several engines on a host then rarely choose the same.
    """
    return FIRST_UID + random.SystemRandom().randrange(UID_COUNT)
