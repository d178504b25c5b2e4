"""Launch a VM's VMM, wait until its guest is set up, and watch for its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from squib.core.engine import VMM, Engine, RunningVM
from squib.core.lifecycle import transitions
from squib.core.lifecycle.delete import delete_if_ephemeral
from squib.core.lifecycle.release import RUN, release
from squib.core.lifecycle.verbs import Turn
from squib.drivers.base import Disk, Driver, ExitKind, FreshMemory, Machine, MachineSpec
from squib.errors import AgentUnreachable, BootFailed, BootTimeout, NotFound, RecordCorrupt, Superseded
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

log = logging.getLogger("squib.boot")

_VMM_EXTRA_CPUS = 0.5
_VMM_PIDS = 256
_END_GRACE_S = 1.0
_SHOWN_LINES = 30
_SHOWN_BYTES = 16 * 1024


async def machine_spec(engine: Engine, record: VMRecord) -> MachineSpec:
    """Return a VM as its driver boots it. Raises `NotFound`, `ImageCorrupt`, `InvalidArgument`."""
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


async def launch(engine: Engine, record: VMRecord, spec: MachineSpec) -> RunningVM:
    """Start a VM's VMM, with leases for all that it takes.

    Raises the errors of `Driver.launch`, and `DiskFull`. What was taken until then is for the caller to release.
    """
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
    await _write_fingerprint(engine, record, spec)
    with disk_errors(folder):
        machine = await driver.launch(spec, folder, engine.vmm_identity(record.vm_id), credentials, on_spawned)
    vm = engine.running[record.vm_id] = RunningVM(machine, AgentClient(machine.connect_agent))
    return vm


async def _write_fingerprint(engine: Engine, record: VMRecord, spec: MachineSpec) -> None:
    """Note what a VM is launched with: the VMM may be upgraded while it runs. Raises `DiskFull`, `OSError`."""
    driver = engine.drivers.get(record.driver)
    if driver.capabilities.save:
        path = engine.home.vm(record.vm_id).fingerprint
        with disk_errors(path.parent):
            path.write_text(json.dumps(await driver.fingerprint(spec)))


async def until_set_up(
    record: VMRecord, vm: RunningVM, set_up: Coroutine[Any, Any, None], *, timeout_s: float, hint: str
) -> None:
    """Run ``set_up``, which waits for a VM's agent and gives the guest its identity, unless the VMM ends first.

    Raises `BootFailed` if the VMM ends, and `BootTimeout` with this ``hint`` if the agent does not answer in time.
    """
    ready = asyncio.create_task(set_up)
    ended = asyncio.create_task(vm.machine.wait())
    try:
        await asyncio.wait({ready, ended}, return_when=asyncio.FIRST_COMPLETED)
        if ready.done() and isinstance(ready.exception(), AgentUnreachable):
            # When a VMM ends, the agent's port closes first. The end of the VMM explains more, so wait for it.
            await asyncio.wait({ended}, timeout=_END_GRACE_S)
        if ended.done():
            raise BootFailed(
                f"VM {record.name} ended while it started: {ended.result().text}",
                detail=_tail(vm.machine),
                hint="check that kernel and root filesystem are bootable; squib doctor checks squib's own",
            )
        ready.result()
    except AgentUnreachable as error:
        raise BootTimeout(
            f"VM {record.name} was not ready within {timeout_s:.3g} s: {error.message}",
            detail=_tail(vm.machine),
            hint=hint,
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
        with contextlib.suppress(NotFound, RecordCorrupt):
            delete_if_ephemeral(engine, engine.store.get_vm(vm_id))

    with contextlib.suppress(Superseded):  # by a stop or delete, which settles it
        await engine.verbs.run(vm_id, "settle", settle)
