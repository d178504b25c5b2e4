"""The asyncio VM class, `AsyncVM`. `squib.VM` is the synchronous version."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Self, Unpack

from squib.errors import BootError, NotFound, SquibError, WrongState
from squib.models import OnProgress, SnapshotInfo, VMConfig, VMInfo, VMState
from squib.sdk.aio_commands import AsyncCommands
from squib.sdk.bond import Bond
from squib.sdk.client import EngineClient, Persistence
from squib.sdk.config import VMOptions, make_config
from squib.sdk.env import AsyncEnv
from squib.sdk.fileclient import FileClient
from squib.sdk.files import AsyncFiles
from squib.undo import AsyncUndo, to_its_end


class AsyncVM(AsyncCommands):
    """A Linux microVM, for asyncio programs.

        async with AsyncVM() as vm:  # creates and starts the VM; deletes it on exit, even after kill -9
            print((await vm.run("uname -a")).output)

    Use it as a context manager, or get one from `create` (registered, not running) or `from_id`, and boot it with
    `start`.

    ``config`` and ``options`` describe the VM; see `create`. ``engine`` defaults to the engine at ``$SQUIB_URL``, or
    to the local one. `close` does not close an engine that you pass in.
    """

    def __init__(
        self,
        config: VMConfig | None = None,
        *,
        engine: EngineClient | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[VMOptions],
    ) -> None:
        self._on_progress = on_progress
        self._config = make_config(config, options)
        self._engine = engine or EngineClient()
        self._owns_engine = engine is None
        self._info: VMInfo | None = None
        self._bond = Bond(self._engine)

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self._info.vm_id} {self._info.state}>"
            if self._info
            else f"<{type(self).__name__} not created>"
        )

    @classmethod
    async def create(
        cls,
        config: VMConfig | None = None,
        *,
        engine: EngineClient | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[VMOptions],
    ) -> Self:
        """Register a VM without starting it.

        ``options`` are fields of `VMConfig` and override ``config``. If the kernel or the image is not in the cache,
        it is built first, and ``on_progress`` is called with each build step.

        Raises `InvalidArgument`, `NameTaken`, `DiskFull`, and the errors of `EngineClient.build_image`.
        """
        vm = cls(config, engine=engine, on_progress=on_progress, **options)
        async with AsyncUndo(vm.close):
            await vm._register()
        return vm

    @classmethod
    async def from_id(cls, vm_id: str, *, engine: EngineClient | None = None) -> Self:
        """Look up a VM by ID or name. Raises `NotFound`, `InvalidArgument`."""
        vm = cls(engine=engine)
        async with AsyncUndo(vm.close):
            vm._info = await vm._engine.vm(vm_id)
        return vm

    @classmethod
    async def list(cls, *, project: str | None = None, engine: EngineClient | None = None) -> list[VMInfo]:
        """List all VMs, or the VMs of one project, oldest first."""
        client = engine or EngineClient()
        try:
            return await client.vms(project=project)
        finally:
            if engine is None:
                await client.close()

    async def _register(self) -> None:
        """Create the VM unless it exists.

        The VM is created bound, and released when this call has its ID. So an interrupted call leaves no VM behind.
        """
        if self._info is None:
            await self._create()
            async with AsyncUndo(self._undo_create):
                await self._engine.release_vm(self.vm_id)

    async def _undo_create(self) -> None:
        await self._discard()
        self._info = None

    async def _create(self) -> None:
        self._info = await self._engine.create_vm(self._config, bound=True, on_progress=self._on_progress)

    async def _bind(self) -> None:
        """Bind the VM to this program, and create it unless it exists."""
        is_new = self._info is None
        if is_new:
            await self._create()
        await self._bond.bind(self.vm_id, if_bound=is_new)

    async def _reserve(self) -> None:
        """Register the VM, bound to this program until `_keep`."""
        async with AsyncUndo(self._discard):
            await self._bind()

    async def _keep(self) -> None:
        await self._bond.release(self.vm_id)

    @property
    def info(self) -> VMInfo:
        """The cached VM details; `refresh` updates them.

        Raises `NotFound` if the VM has not been created.
        """
        if self._info is None:
            raise NotFound("this VM has not been created", hint="use await vm.start() or await AsyncVM.create()")
        return self._info

    @property
    def vm_id(self) -> str:
        """The VM's ID."""
        return self.info.vm_id

    @property
    def name(self) -> str:
        """The VM's name."""
        return self.info.name

    @property
    def status(self) -> VMState:
        """The cached VM state; `refresh` updates it."""
        return self.info.state

    @property
    def env(self) -> AsyncEnv:
        """The environment variables that every command gets."""
        return AsyncEnv(self._engine, self.vm_id)

    @property
    def files(self) -> AsyncFiles:
        """The guest's files."""
        return AsyncFiles(self._engine, self.vm_id)

    async def home(self, user: str | None = None) -> str:
        """Return the home directory of a guest user, by default the VM's user.

        Raises `NoSuchUser`, `WrongState` if the VM is not running, and `AgentUnreachable`.
        """
        return (await FileClient(self._engine, self.vm_id, user).account()).home

    async def refresh(self) -> VMInfo:
        """Fetch the VM's current details. Raises `NotFound` if it was deleted."""
        self._info = await self._engine.vm(self.vm_id)
        return self._info

    async def start(self, boot_timeout: float = 30.0, *, bound: bool = False, cold: bool = False) -> Self:
        """Boot the VM, or let it go on if it is suspended, and wait until the guest agent responds.

        ``boot_timeout`` is in seconds. With ``cold`` the memory of a suspended VM is discarded, and it boots. If the
        VM is already running, do nothing. If it is not registered, register it first, as `create` does.

        With ``bound``, the VM lives as long as this program: `close` deletes it, and the engine does if the program
        ends without it, even by ``kill -9``. If the start fails, the VM is deleted.

        Raises `BootFailed`, `BootTimeout`, `WrongState`, the errors of `create`, and `Unsupported` if a suspended VM
        cannot go on here.
        """
        if not bound:
            await self._register()
            return await self._boot(boot_timeout, cold=cold)
        async with AsyncUndo(self._try_to_discard):
            await self._bind()
            return await self._boot(boot_timeout, cold=cold)

    async def _try_to_discard(self) -> None:
        with suppress(SquibError):  # the engine deletes it as soon as it can
            await self._discard()

    async def _boot(self, boot_timeout: float, *, cold: bool) -> Self:
        async with self._states_seen():
            self._info = await self._engine.start_vm(self.vm_id, boot_timeout_s=boot_timeout, cold=cold)
        return self

    async def stop(self, timeout: float = 3.0) -> Self:
        """Shut the VM down: sync its disk and keep it.

        If the shutdown takes longer than ``timeout`` seconds, kill the VM.
        """
        async with self._states_seen():
            self._info = await self._engine.stop_vm(self.vm_id, timeout_s=timeout)
        return self

    async def pause(self) -> Self:
        """Pause the VM: memory is kept, no CPU is used. Raises `WrongState`."""
        async with self._states_seen():
            self._info = await self._engine.pause_vm(self.vm_id)
        return self

    async def resume(self) -> Self:
        """Resume the paused VM and set its clock. Raises `WrongState`."""
        async with self._states_seen():
            self._info = await self._engine.resume_vm(self.vm_id)
        return self

    async def delete(self) -> None:
        """Delete the VM permanently, in any state.

        `status` is ``deleted`` afterwards. Idempotent.
        """
        with suppress(NotFound):
            await self._engine.delete_vm(self.vm_id)
        self._set_deleted()

    def _set_deleted(self) -> None:
        if self._info is not None:
            self._info = self._info.model_copy(update={"state": VMState.DELETED})

    @asynccontextmanager
    async def _states_seen(self) -> AsyncIterator[None]:
        """Fetch the VM's state after a `WrongState` or `BootError`."""
        try:
            yield
        except (WrongState, BootError):
            with suppress(SquibError):
                try:
                    await self.refresh()
                except NotFound:
                    self._set_deleted()
            raise

    async def close(self) -> None:
        """Close this object's connections, and delete the VM if it is bound.

        A VM that is not bound keeps running. Idempotent.
        """
        if self._bond.active:
            await self._discard()
        elif self._owns_engine:
            await self._engine.close()

    async def __aenter__(self) -> Self:
        return await self.start(bound=True)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._discard()

    async def _discard(self) -> None:
        """Delete the VM and close the connections, even when cancelled."""
        await to_its_end(asyncio.create_task(self._delete_and_close(), name="delete VM"))

    async def _delete_and_close(self) -> None:
        try:
            if self._info is not None:
                await self.delete()
        finally:
            await self._bond.end()
            await self.close()

    async def suspend(self) -> Self:
        """Suspend the VM: its memory goes to the disk, and it uses no memory and no CPU.

        `start` lets it go on. Commands that run go on too, except those that a program waits for (`run`).

        Raises `WrongState`, `Unsupported`, `DiskFull`.
        """
        async with self._states_seen():
            self._info = await self._engine.suspend_vm(self.vm_id)
        return self

    async def snapshot(self, name: str | None = None, *, disk_only: bool = False, resume: bool = True) -> SnapshotInfo:
        """Save the VM's memory and disk, as of one moment, and return the snapshot's description.

        The VM stands still for a moment. ``name`` defaults to the snapshot's ID. With ``disk_only`` only the disk is
        saved, of a VM in any state. With ``resume=False`` the VM is paused afterwards. ``AsyncVM(snapshot=name)`` makes
        a VM from it; `EngineClient.delete_snapshot` deletes it.

        Raises `NameTaken`, `WrongState`, `Unsupported`, `DiskFull`.
        """
        async with self._states_seen():
            return await self._engine.create_snapshot(self.vm_id, name=name, disk_only=disk_only, resume=resume)

    async def fork(
        self,
        count: int = 1,
        *,
        name: str | None = None,
        persistence: Persistence = "ephemeral",
        boot_timeout: float = 30.0,
    ) -> builtins.list[Self]:
        """Make ``count`` more VMs that go on from where this one is, each with its own memory and disk.

        An ``ephemeral`` fork is deleted with this VM, and when it stops; a ``persistent`` one lives on. One fork is
        called ``name``, several ``name-1``, ``name-2`` and so on.

        Raises `WrongState`, `NameTaken`, `Unsupported`, `DiskFull`. If some forks cannot be made, the others are
        deleted, and an `ExceptionGroup` of the errors is raised; `EngineClient.fork_vm` returns each result instead.
        """
        async with self._states_seen():
            results = await self._engine.fork_vm(
                self.vm_id, count=count, name=name, persistence=persistence, boot_timeout_s=boot_timeout
            )
        made = [self._of(result) for result in results if isinstance(result, VMInfo)]
        if errors := [result for result in results if isinstance(result, SquibError)]:
            for vm in made:
                await vm.delete()
            raise ExceptionGroup(f"{len(errors)} of {count} forks of VM {self.name} could not be made", errors)
        return made

    def _of(self, info: VMInfo) -> Self:
        """Return an object for another VM of the same engine."""
        vm = type(self)(engine=self._engine)
        vm._info = info
        return vm

    async def rollback(self, snapshot: str | SnapshotInfo, boot_timeout: float = 30.0) -> Self:
        """Take the VM back to a snapshot, in place, and let it run. What it did since is lost.

        Raises `NotFound`, `InvalidArgument` if the snapshot is of another machine, `Unsupported`, `DiskFull`, and the
        errors of `start`.
        """
        ref = snapshot.snapshot_id if isinstance(snapshot, SnapshotInfo) else snapshot
        async with self._states_seen():
            self._info = await self._engine.rollback_vm(self.vm_id, ref, boot_timeout_s=boot_timeout)
        return self

    async def logs(self, *, lines: int | None = None) -> bytes:
        """Return the last ``lines`` lines of the VM's console log.

        By default, return the whole log. The engine keeps at most 2 MiB.
        """
        return b"".join([chunk async for chunk in self._engine.vm_logs(self.vm_id, lines=lines)])
