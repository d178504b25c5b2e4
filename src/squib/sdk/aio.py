"""The asyncio VM class, `AsyncVM`. `squib.VM` is the synchronous version."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Self, Unpack

from squib.errors import BootError, BootTimeout, NotFound, SquibError, WrongState
from squib.models import OnProgress, ProcessInfo, PtySize, VMConfig, VMInfo, VMState
from squib.sdk.aio_process import AsyncProcess, find_process, list_processes, spawn
from squib.sdk.bond import Bond
from squib.sdk.client import EngineClient
from squib.sdk.command import exec_request, start_command
from squib.sdk.config import VMOptions, make_config
from squib.sdk.env import AsyncEnv
from squib.sdk.fileclient import FileClient
from squib.sdk.files import AsyncFiles
from squib.sdk.result import MAX_OUTPUT_BYTES, Collector, ExecResult, OnOutput, Truncate
from squib.sdk.transfer.chunks import to_its_end
from squib.undo import AsyncUndo

_READY_POLL_S = 0.05
_PENDING_STATES = (VMState.CREATING, VMState.STARTING)


class AsyncVM:
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

    async def start(self, boot_timeout: float = 30.0, *, bound: bool = False) -> Self:
        """Boot the VM and wait until the guest agent responds.

        ``boot_timeout`` is in seconds. If the VM is already running, do nothing. If it is not registered, register it
        first, as `create` does.

        With ``bound``, the VM lives as long as this program: `close` deletes it, and the engine does if the program
        ends without it, even by ``kill -9``. If the start fails, the VM is deleted.

        Raises `BootFailed`, `BootTimeout`, `WrongState`, and the errors of `create`.
        """
        if not bound:
            await self._register()
            return await self._boot(boot_timeout)
        async with AsyncUndo(self._try_to_discard):
            await self._bind()
            return await self._boot(boot_timeout)

    async def _try_to_discard(self) -> None:
        with suppress(SquibError):  # the engine deletes it as soon as it can
            await self._discard()

    async def _boot(self, boot_timeout: float) -> Self:
        async with self._states_seen():
            self._info = await self._engine.start_vm(self.vm_id, boot_timeout_s=boot_timeout)
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

    async def wait_for_ready(self, timeout: float = 30.0) -> None:
        """Wait until the VM, started by another client, is running.

        ``timeout`` is in seconds.

        Raises `BootTimeout`, and `WrongState` if the VM is not starting.
        """
        try:
            async with asyncio.timeout(timeout):
                while (await self.refresh()).state in _PENDING_STATES:
                    await asyncio.sleep(_READY_POLL_S)
        except TimeoutError:
            raise BootTimeout(f"VM {self.name} was not ready within {timeout:g} s") from None
        if self.info.state is not VMState.RUNNING:
            await self.run(["true"])  # raises the engine's error, with its reason and hint

    async def run(
        self,
        cmd: str | Sequence[str],
        *,
        check: bool = False,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        sudo: bool = False,
        input: str | bytes | None = None,
        on_stdout: OnOutput | None = None,
        on_stderr: OnOutput | None = None,
        max_output: int = MAX_OUTPUT_BYTES,
        truncate: Truncate = "head",
    ) -> ExecResult:
        """Run a command and wait for it to exit.

        - ``cmd``: a string runs through ``/bin/sh -c``; a list is the program and its arguments.
        - ``check``: raise `CommandFailed` or `CommandTimeout` if the exit code is not 0.
        - ``timeout``: seconds until the command and its descendants are killed and `ExecResult.timed_out` is set. 0 and
          ``None``: no limit.
        - ``env``: variables added to the VM's environment.
        - ``cwd``: the working directory.
        - ``user``: ``name``, ``uid``, ``name:group`` or ``uid:gid``.
        - ``sudo``: run as root on behalf of ``user``.
        - ``input``: the command's standard input; text is encoded as UTF-8.
        - ``on_stdout``, ``on_stderr``: called with each chunk of output, in bytes. If one raises, the command is killed
          and the call raises the same exception.
        - ``max_output``: how many bytes the result keeps: the first (``truncate="head"``) or the last (``"tail"``).
          With ``"error"``, more output kills the command and raises `OutputTooLarge`.

        Cancelling the call kills the command.

        The arguments and the environment may take what Linux allows: 128 KiB for one string, 2 MiB in total.

        Raises `CommandNotFound`, `NotExecutable`, `ArgumentsTooLong`, `NoShell`, `BadWorkingDirectory` or `NoSuchUser`
        if the command cannot start, `WrongState` if the VM is not running, and `AgentUnreachable` if the VM stops
        responding.
        """
        if self.info.state in _PENDING_STATES:
            await self.wait_for_ready()
        request = exec_request(cmd, timeout=timeout, env=env, cwd=cwd, user=user, sudo=sudo)
        stdin = input.encode() if isinstance(input, str) else input
        collector = Collector(on_stdout, on_stderr, max_output, truncate)
        async with self._states_seen(), start_command(self._engine, self.vm_id, request, stdin=stdin) as command:
            async for frame in command.output():
                collector.add(frame)
        result = collector.result(command.end)
        return result.check(cmd if isinstance(cmd, str) else " ".join(cmd)) if check else result

    async def spawn(
        self,
        cmd: str | Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        sudo: bool = False,
        stdin: bool = False,
        timeout: float | None = None,
        pty: bool | PtySize = False,
    ) -> AsyncProcess:
        """Start a background command that outlives this program.

        ``cmd``, ``env``, ``cwd``, ``user``, ``sudo`` and ``timeout`` are as in `run`. With ``stdin``, write to the
        command through `AsyncProcess.stdin`; otherwise its standard input is empty. With ``pty``, the command gets a
        terminal of that size (``True``: 24 rows by 80 columns), and `AsyncProcess.stdin` writes to it.

        Raises the errors of `run`.
        """
        if self.info.state in _PENDING_STATES:
            await self.wait_for_ready()
        request = exec_request(cmd, timeout=timeout, env=env, cwd=cwd, user=user, sudo=sudo, stdin=stdin, pty=pty)
        async with self._states_seen():
            return await spawn(self._engine, self.vm_id, request)

    async def processes(self) -> builtins.list[ProcessInfo]:
        """List the VM's commands, oldest first.

        The list holds all running commands, and the background commands that have exited and are still kept.

        Raises `WrongState`, `AgentUnreachable`.
        """
        return await list_processes(self._engine, self.vm_id)

    async def process(self, id: str) -> AsyncProcess:
        """Look up a command by its id. Raises `NoSuchProcess`, `WrongState`."""
        return await find_process(self._engine, self.vm_id, id)

    async def logs(self, *, lines: int | None = None) -> bytes:
        """Return the last ``lines`` lines of the VM's console log.

        By default, return the whole log. The engine keeps at most 2 MiB.
        """
        return b"".join([chunk async for chunk in self._engine.vm_logs(self.vm_id, lines=lines)])
