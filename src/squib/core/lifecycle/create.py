"""``create``: register a VM, create its disk and, with ``start``, boot it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from squib.core import references
from squib.core.engine import Engine
from squib.core.lifecycle import transitions
from squib.core.lifecycle.bonds import expect_client
from squib.core.lifecycle.boot import DEFAULT_BOOT_TIMEOUT_S, boot, choose_uid, extra_modules
from squib.core.lifecycle.delete import remove
from squib.core.lifecycle.verbs import Turn
from squib.drivers.base import Driver, Needs
from squib.drivers.registry import Choice
from squib.host.files import disk_errors
from squib.images import rootfs
from squib.images.runtimes import RUNTIMES
from squib.kernels import user
from squib.models import AssetRef, CachedRef, HostFileRef, OnProgress, Progress, VMConfig, VMState
from squib.store.database import now
from squib.store.records import LeaseKind, Owner, VMRecord, VMSpec
from squib.undo import AsyncUndo

ID_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_ID_LENGTH = 8
_USER_ROOTFS_MEM_SIZE_MIB = 256


async def create_vm(
    engine: Engine,
    config: VMConfig,
    *,
    start: bool,
    bound: bool = False,
    on_progress: OnProgress,
    boot_timeout_s: float = DEFAULT_BOOT_TIMEOUT_S,
) -> VMRecord:
    """Create a VM from ``config``.

    Build its kernel and image first if they are not in the cache.

    With ``start``, return when it has booted. A ``bound`` VM is deleted if no client holds it soon after its creation
    (`squib.core.lifecycle.bonds`). A failure or a cancellation of this call removes the VM completely.

    Raises `NameTaken`, `InvalidArgument`, `Unsupported`, `DiskFull`, `BootError`, `Superseded`, and the errors of
    building an image.
    """
    with contextlib.ExitStack() as choosing:
        choosing.enter_context(references.choosing(engine))
        return await _create(engine, config, start, bound, on_progress, boot_timeout_s, on_recorded=choosing.close)


async def _create(
    engine: Engine,
    config: VMConfig,
    start: bool,
    bound: bool,
    on_progress: OnProgress,
    boot_timeout_s: float,
    on_recorded: Callable[[], None],
) -> VMRecord:
    vm_id = config.vm_id or new_id()
    engine.store.check_free(vm_id, config.name or vm_id)
    choice = choose_driver(engine, config)
    record = VMRecord(
        vm_id=vm_id,
        name=config.name or vm_id,
        state=VMState.CREATING,
        reason="",
        spec=_spec(
            config,
            choice,
            kernel=await _find_kernel(engine, choice.driver, config, on_progress),
            rootfs=await _find_rootfs(engine, config, on_progress),
        ),
        driver=choice.driver.name,
        accelerator=choice.driver.accelerator,
        machine_id=secrets.token_hex(16),
        uid=choose_uid() if os.geteuid() == 0 else None,
        pid=None,
        bound=bound,
        created_at=now(),
        started_at=None,
        stopped_at=None,
    )

    async def create(turn: Turn) -> VMRecord:
        if bound:
            engine.on_needed(True)  # an engine that is killed now is followed by one that deletes the VM
        engine.store.add_vm(record)
        on_recorded()
        async with AsyncUndo(lambda: asyncio.shield(remove(engine, record))):
            await _make_directory(engine, record, on_progress)
            if start:
                on_progress(Progress(step="boot"))
                await boot(engine, record, boot_timeout_s=boot_timeout_s, is_new=True)
            else:
                transitions.transition(engine.store, record, VMState.CREATED)
        if bound:
            expect_client(engine, vm_id)
        return engine.store.get_vm(vm_id)

    # The turn begins before the VM is in the database, so a delete that finds the VM supersedes the create.
    return await engine.verbs.run(vm_id, "create", create)


def choose_driver(engine: Engine, config: VMConfig) -> Choice:
    """Choose the driver of a VM with this configuration.

    Raises `Unsupported` if none can run it, or if the one that it asks for cannot, and `InvalidArgument` if its kernel
    cannot be read.
    """
    needs = Needs(
        jailer=config.jailer,
        nested=config.nested,
        vcpu_count=config.vcpu_count,
        bzimage=config.kernel_path is not None and user.is_bzimage(Path(config.kernel_path)),
    )
    return engine.drivers.choose(config.driver, needs)


def new_id() -> str:
    """Return a new random VM ID (40 bits), such as ``vm-7k2mq9xd``.

    No two characters of its alphabet look alike.
    """
    return "vm-" + "".join(secrets.choice(ID_ALPHABET) for _ in range(_ID_LENGTH))


async def _find_kernel(engine: Engine, driver: Driver, config: VMConfig, on_progress: OnProgress) -> AssetRef:
    """Find the kernel and build its initramfs, both with progress reports."""
    if config.kernel_path:
        kernel = await asyncio.to_thread(user.inspect, Path(config.kernel_path))
    else:
        kernel = await engine.kernels.ensure(on_progress)
    extras = extra_modules(driver, nested=config.nested)
    await engine.initramfs.ensure(kernel, engine.agent_binary, on_progress, extras=extras)
    return HostFileRef(path=str(kernel.path)) if config.kernel_path else CachedRef(digest=kernel.digest)


async def _find_rootfs(engine: Engine, config: VMConfig, on_progress: OnProgress) -> AssetRef:
    if config.rootfs_path:
        return HostFileRef(path=str(rootfs.inspect(Path(config.rootfs_path)).path))
    return CachedRef(digest=(await engine.images.ensure(config.runtime, on_progress)).digest)


def _spec(config: VMConfig, choice: Choice, *, kernel: AssetRef, rootfs: AssetRef) -> VMSpec:
    needed_mib = _USER_ROOTFS_MEM_SIZE_MIB if config.rootfs_path else RUNTIMES[config.runtime].min_memory_mib
    return VMSpec(
        project=config.project,
        runtime=None if config.rootfs_path else config.runtime,
        vcpu_count=config.vcpu_count,
        mem_size_mib=config.mem_size_mib or needed_mib,
        disk_size_mib=config.disk_size_mib,
        kernel=kernel,
        rootfs=rootfs,
        boot_args=config.boot_args,
        nested=config.nested,
        env_vars=config.env_vars,
        cwd=config.cwd,
        user=config.user,
        jailer=config.jailer,
        cold=config.cold,
        driver_reason=choice.reason,
    )


async def _make_directory(engine: Engine, record: VMRecord, on_progress: OnProgress) -> None:
    paths = engine.home.vm(record.vm_id)
    owner = Owner.vm(record.vm_id)
    engine.store.add_lease(owner, LeaseKind.DIRECTORY, owner.key())
    with disk_errors(paths.root):
        paths.root.mkdir(mode=0o700)
    await engine.overlays.create(paths.overlay, record.spec.disk_size_mib, on_progress)
