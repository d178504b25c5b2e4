"""The commands of an `squib.AsyncVM`."""

from __future__ import annotations

import asyncio
import builtins
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager

from squib.errors import BootTimeout
from squib.models import ProcessInfo, PtySize, VMInfo, VMState
from squib.sdk.aio_process import AsyncProcess, find_process, list_processes, spawn
from squib.sdk.client import EngineClient
from squib.sdk.command import exec_request, start_command
from squib.sdk.result import MAX_OUTPUT_BYTES, Collector, ExecResult, OnOutput, Truncate

_READY_POLL_S = 0.05
_PENDING_STATES = (VMState.CREATING, VMState.STARTING)


class AsyncCommands(ABC):
    """The part of `squib.AsyncVM` that runs commands."""

    _engine: EngineClient

    @property
    @abstractmethod
    def info(self) -> VMInfo: ...

    @property
    @abstractmethod
    def vm_id(self) -> str: ...

    @property
    @abstractmethod
    def name(self) -> str: ...

    @abstractmethod
    async def refresh(self) -> VMInfo: ...

    @abstractmethod
    def _states_seen(self) -> AbstractAsyncContextManager[None]: ...

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
        restore_signal: int | None = None,
    ) -> AsyncProcess:
        """Start a background command that outlives this program.

        ``cmd``, ``env``, ``cwd``, ``user``, ``sudo`` and ``timeout`` are as in `run`. With ``stdin``, write to the
        command through `AsyncProcess.stdin`; otherwise its standard input is empty. With ``pty``, the command gets a
        terminal of that size (``True``: 24 rows by 80 columns), and `AsyncProcess.stdin` writes to it. The command gets
        ``restore_signal`` when it continues in a fork or a copy of the VM, or after a suspend or a rollback.

        Raises the errors of `run`.
        """
        if self.info.state in _PENDING_STATES:
            await self.wait_for_ready()
        request = exec_request(
            cmd, timeout=timeout, env=env, cwd=cwd, user=user, sudo=sudo, stdin=stdin, pty=pty,
            restore_signal=restore_signal,
        )  # fmt: skip
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
