"""``create``: register a VM, create its disk and, with ``start``, boot it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

from squib.artifacts.building import no_progress
from squib.core import references
from squib.core.engine import Engine
from squib.core.lifecycle import transitions
from squib.core.lifecycle.bonds import expect_client
from squib.core.lifecycle.boot import DEFAULT_BOOT_TIMEOUT_S, boot, choose_uid
from squib.core.lifecycle.delete import remove
from squib.core.lifecycle.launch import extra_modules
from squib.core.lifecycle.verbs import Turn
from squib.core.snapshots import catalog, from_snapshot
from squib.drivers.base import Driver, Needs
from squib.drivers.registry import Choice
from squib.host.files import disk_errors
from squib.images import rootfs
from squib.images.runtimes import RUNTIMES
from squib.kernels import user
from squib.models import AssetRef, CachedRef, HostFileRef, OnProgress, Progress, VMConfig, VMState
from squib.paths import VMPaths
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

    Build its kernel and image first if they are not in the cache. With ``config.snapshot`` the VM has the snapshot's
    machine and disk, and goes on from its memory when it starts.

    With ``start``, return when it has booted. A ``bound`` VM is deleted if no client holds it soon after its creation
    (`squib.core.lifecycle.bonds`). A failure or a cancellation of this call removes the VM completely.

    Raises `NameTaken`, `InvalidArgument`, `Unsupported`, `DiskFull`, `BootError`, `Superseded`, `NotFound` if there is
    no such snapshot, and the errors of building an image.
    """
    with contextlib.ExitStack() as choosing:
        choosing.enter_context(references.choosing(engine))
        vm_id = config.vm_id or new_id()
        engine.store.check_free(vm_id, config.name or vm_id)
        if config.snapshot:
            snapshot = catalog.find(engine.home, config.snapshot)
            spec = from_snapshot.spec(config, snapshot.manifest)
            driver = engine.drivers.get(snapshot.manifest.driver)
        else:
            snapshot = None
            choice = choose_driver(engine, config)
            driver = choice.driver
            spec = _spec(
                config,
                choice,
                kernel=await _find_kernel(engine, driver, config, on_progress),
                rootfs=await _find_rootfs(engine, config, on_progress),
            )
        record = new_record(vm_id, config.name or vm_id, spec, driver.name, driver.accelerator, bound=bound)
        if snapshot and not config.cold:
            await from_snapshot.check(engine, snapshot, record)

        async def fill(paths: VMPaths) -> None:
            if snapshot:
                machine = None if config.cold else snapshot.manifest.machine
                await from_snapshot.fill_from(paths, snapshot.paths, machine, durable=True)
            else:
                await engine.overlays.create(paths.overlay, spec.disk_size_mib, on_progress)

        return await add_vm(
            engine,
            record,
            fill,
            start=start,
            on_progress=on_progress,
            boot_timeout_s=boot_timeout_s,
            on_recorded=choosing.close,
        )


def new_record(vm_id: str, name: str, spec: VMSpec, driver: str, accelerator: str, *, bound: bool = False) -> VMRecord:
    """Return the record of a new VM."""
    return VMRecord(
        vm_id=vm_id,
        name=name,
        state=VMState.CREATING,
        reason="",
        spec=spec,
        driver=driver,
        accelerator=accelerator,
        machine_id=secrets.token_hex(16),
        uid=choose_uid() if os.geteuid() == 0 else None,
        pid=None,
        bound=bound,
        created_at=now(),
        started_at=None,
        stopped_at=None,
    )


async def add_vm(
    engine: Engine,
    record: VMRecord,
    fill: Callable[[VMPaths], Awaitable[None]],
    *,
    start: bool,
    on_progress: OnProgress = no_progress,
    boot_timeout_s: float = DEFAULT_BOOT_TIMEOUT_S,
    on_recorded: Callable[[], None] = lambda: None,
) -> VMRecord:
    """Add a new VM, let ``fill`` make the files in its directory, and start it if it is to ``start``.

    ``on_recorded`` is called when its record keeps what it uses. A failure or a cancellation removes the VM completely.

    Raises `NameTaken`, `DiskFull`, `BootError`, `Superseded`.
    """

    async def create(turn: Turn) -> VMRecord:
        if record.bound:
            engine.on_needed(True)  # an engine that is killed now is followed by one that deletes the VM
        engine.store.add_vm(record)
        on_recorded()
        async with AsyncUndo(lambda: asyncio.shield(remove(engine, record))):
            await fill(_make_directory(engine, record))
            if start:
                on_progress(Progress(step="boot"))
                await boot(engine, record, boot_timeout_s=boot_timeout_s, is_new=not record.spec.parent)
            else:
                transitions.transition(engine.store, record, VMState.CREATED)
        if record.bound:
            expect_client(engine, record.vm_id)
        return engine.store.get_vm(record.vm_id)

    # The turn begins before the VM is in the database, so a delete that finds the VM supersedes the create.
    return await engine.verbs.run(record.vm_id, "create", create)


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


def new_id(kind: str = "vm") -> str:
    """Return a new random ID (40 bits), such as ``vm-7k2mq9xd``.

    No two characters of its alphabet look alike.
    """
    return f"{kind}-" + "".join(secrets.choice(ID_ALPHABET) for _ in range(_ID_LENGTH))


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


def _make_directory(engine: Engine, record: VMRecord) -> VMPaths:
    paths = engine.home.vm(record.vm_id)
    owner = Owner.vm(record.vm_id)
    engine.store.add_lease(owner, LeaseKind.DIRECTORY, owner.key())
    with disk_errors(paths.root):
        paths.root.mkdir(mode=0o700)
    return paths
