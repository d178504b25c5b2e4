"""`AsyncVM`: one VM, for asyncio programs. `squib.VM` is its synchronous face."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Self, Unpack

from squib.errors import BootTimeout, NotFound
from squib.models import OnProgress, ProcessInfo, PtySize, VMConfig, VMInfo, VMState
from squib.sdk.aio_process import AsyncProcess, find_process, list_processes, spawn
from squib.sdk.client import EngineClient
from squib.sdk.command import exec_request, start_command
from squib.sdk.config import VMOptions, make_config
from squib.sdk.env import AsyncEnv
from squib.sdk.files import AsyncFiles
from squib.sdk.result import Collector, ExecResult, OnOutput

_READY_POLL_S = 0.05
_ON_THE_WAY = (VMState.CREATING, VMState.STARTING)


class AsyncVM:
    """A Linux microVM. Made by `create` (registered, not running) or `from_id`; `start` boots it.

        async with AsyncVM() as vm:                 # created and started; deleted on exit, even on kill -9
            print((await vm.run("uname -a")).output)

    ``engine`` is the engine to use, by default the local one or ``$SQUIB_URL``; an engine that is passed in is not
    closed with the VM.
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
        self._held = AsyncExitStack()

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self._info.vm_id} {self._info.state}>"
            if self._info
            else f"<{type(self).__name__} not made yet>"
        )

    # --- making and finding -------------------------------------------------------------------------------------

    @classmethod
    async def create(
        cls,
        config: VMConfig | None = None,
        *,
        engine: EngineClient | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[VMOptions],
    ) -> Self:
        """Register a VM with ``config`` and ``options`` (the fields of `VMConfig`). It does not run yet.

        ``on_progress`` is called with the steps of building its kernel and image, if they are not in the cache. Raises
        `InvalidArgument`, `NameTaken`, `DiskFull`, and what building an image raises.
        """
        vm = cls(config, engine=engine, on_progress=on_progress, **options)
        try:
            await vm._register()
        except BaseException:
            await vm.close()
            raise
        return vm

    @classmethod
    async def from_id(cls, vm_id: str, *, engine: EngineClient | None = None) -> Self:
        """The VM with this ID or name, whoever made it. Raises `NotFound`, `InvalidArgument`."""
        vm = cls(engine=engine)
        try:
            vm._info = await vm._engine.vm(vm_id)
        except BaseException:
            await vm.close()
            raise
        return vm

    @classmethod
    async def list(cls, *, project: str | None = None, engine: EngineClient | None = None) -> list[VMInfo]:
        """All VMs, or those of one project; oldest first."""
        client = engine or EngineClient()
        try:
            return await client.vms(project=project)
        finally:
            if engine is None:
                await client.close()

    async def _register(self, *, bound: bool = False) -> None:
        if self._info is None:
            self._info = await self._engine.create_vm(self._config, bound=bound, on_progress=self._on_progress)

    # --- what it is ---------------------------------------------------------------------------------------------

    @property
    def info(self) -> VMInfo:
        """The VM as last seen; `refresh` looks again. Raises `NotFound` if it was not made yet."""
        if self._info is None:
            raise NotFound("this VM was not made yet", hint="await vm.start(), or AsyncVM.create()")
        return self._info

    @property
    def vm_id(self) -> str:
        return self.info.vm_id

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def status(self) -> VMState:
        """The state as last seen."""
        return self.info.state

    @property
    def env(self) -> AsyncEnv:
        """The environment that every command starts with."""
        return AsyncEnv(self._engine, self.vm_id)

    @property
    def files(self) -> AsyncFiles:
        """The files of the guest."""
        return AsyncFiles(self._engine, self.vm_id)

    async def refresh(self) -> VMInfo:
        """Ask the engine for the VM as it is now. Raises `NotFound` if it was deleted."""
        self._info = await self._engine.vm(self.vm_id)
        return self._info

    # --- its life -----------------------------------------------------------------------------------------------

    async def start(self, boot_timeout: float = 30.0) -> Self:
        """Boot the VM and wait until the guest answers, at most ``boot_timeout`` seconds.

        A running VM is left as it is. A VM that is not registered yet is registered first, as by `create`.
        Raises `BootFailed`, `BootTimeout`, `WrongState`.
        """
        await self._register()
        self._info = await self._engine.start_vm(self.vm_id, boot_timeout_s=boot_timeout)
        return self

    async def stop(self, timeout: float = 3.0) -> Self:
        """Stop the VM in order: its disk is synced and kept. After ``timeout`` seconds it is forced."""
        self._info = await self._engine.stop_vm(self.vm_id, timeout_s=timeout)
        return self

    async def pause(self) -> Self:
        """Halt the VM's processors: it keeps its memory and its commands stand still. Raises `WrongState`."""
        self._info = await self._engine.pause_vm(self.vm_id)
        return self

    async def resume(self) -> Self:
        """Let the paused VM go on, with the time of now. Raises `WrongState`."""
        self._info = await self._engine.resume_vm(self.vm_id)
        return self

    async def delete(self) -> None:
        """Delete the VM for good, in whatever state it is. Done already: nothing."""
        with suppress(NotFound):
            await self._engine.delete_vm(self.vm_id)

    async def close(self) -> None:
        """Release this object's connections; the VM goes on. Idempotent."""
        if self._owns_engine:
            await self._engine.close()

    async def __aenter__(self) -> Self:
        try:
            await self._register(bound=True)
            await self._held.enter_async_context(self._engine.holding(self.vm_id))
            return await self.start()
        except BaseException:
            await self._discard()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._discard()

    async def _discard(self) -> None:
        try:
            if self._info is not None:
                await self.delete()
        finally:
            await self._held.aclose()
            await self.close()

    async def wait_for_ready(self, timeout: float = 30.0) -> None:
        """Wait until the VM, which somebody starts, answers. Raises `BootTimeout`; `WrongState` if nobody starts it."""
        try:
            async with asyncio.timeout(timeout):
                while (await self.refresh()).state in _ON_THE_WAY:
                    await asyncio.sleep(_READY_POLL_S)
        except TimeoutError:
            raise BootTimeout(f"VM {self.name} was not ready within {timeout:g} s") from None
        if self.info.state is not VMState.RUNNING:
            await self.run(["true"])  # the engine says why not, and what to do

    # --- commands -----------------------------------------------------------------------------------------------

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
    ) -> ExecResult:
        """Run a command to its end: a string through ``/bin/sh -c``, a list as program and arguments.

        ``timeout`` is in seconds: the command is then killed with its descendants and `ExecResult.timed_out` is set.
        ``input`` is its standard input (text as UTF-8). ``on_stdout`` and ``on_stderr`` see the output's bytes as
        they come. ``user`` is ``name``, ``uid``, ``name:group`` or ``uid:gid``; with ``sudo`` the command runs as root
        on behalf of that user. Cancelling the call kills the command. With ``check``, any status but 0 raises
        `CommandFailed` or `CommandTimeout`.

        Raises `CommandNotFound`, `NotExecutable`, `NoShell`, `BadWorkingDirectory`, `NoSuchUser` if it cannot be
        started, `WrongState` if the VM does not run, `AgentUnreachable` if the VM is lost.
        """
        if self.info.state in _ON_THE_WAY:
            await self.wait_for_ready()
        request = exec_request(cmd, timeout=timeout, env=env, cwd=cwd, user=user, sudo=sudo)
        stdin = input.encode() if isinstance(input, str) else input
        collector = Collector(on_stdout, on_stderr)
        async with start_command(self._engine, self.vm_id, request, stdin=stdin) as command:
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
        """Start a command that goes on after this call, and after this program; parameters as of `run`.

        With ``stdin`` it reads what `AsyncProcess.stdin` is given, else nothing. With ``pty`` (its size, or ``True``
        for 24 rows of 80) it gets a terminal, which is also its input. After ``timeout`` seconds it is killed.

        Raises as `run`.
        """
        if self.info.state in _ON_THE_WAY:
            await self.wait_for_ready()
        request = exec_request(cmd, timeout=timeout, env=env, cwd=cwd, user=user, sudo=sudo, stdin=stdin, pty=pty)
        return await spawn(self._engine, self.vm_id, request)

    async def processes(self) -> builtins.list[ProcessInfo]:
        """The commands that run in the VM, whoever started them, and those of the background that have ended and are
        still kept; oldest first. Raises `WrongState`, `AgentUnreachable`.
        """
        return await list_processes(self._engine, self.vm_id)

    async def process(self, id: str) -> AsyncProcess:
        """The command with this id, whoever started it. Raises `NoSuchProcess`, `WrongState`."""
        return await find_process(self._engine, self.vm_id, id)

    async def logs(self, *, lines: int | None = None) -> bytes:
        """The last ``lines`` of the console (all that is kept, at most 2 MiB, by default), as the guest wrote them."""
        return b"".join([chunk async for chunk in self._engine.vm_logs(self.vm_id, lines=lines)])
