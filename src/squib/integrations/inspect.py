"""A sandbox for Inspect AI: every sample gets a VM of its own.

    eval("task.py", sandbox="squib")
    eval("task.py", sandbox=SandboxEnvironmentSpec("squib", SquibSandboxConfig(runtime="python3.13")))

Inspect finds it by its entry point once ``squib[inspect]`` is installed. It needs Inspect's asyncio backend, which is
the default.
"""

from __future__ import annotations

import posixpath
import shlex
import tomllib
from pathlib import Path
from typing import Any, Literal, overload

from inspect_ai.util import (
    ExecResult,
    OutputLimitExceededError,
    SandboxConnection,
    SandboxEnvironment,
    SandboxEnvironmentConfigType,
    SandboxEnvironmentLimits,
    SandboxUnavailableError,
    sandboxenv,
)
from pydantic import BaseModel, ConfigDict

from squib.errors import (
    AgentUnreachable,
    BadWorkingDirectory,
    CommandNotFound,
    EngineUnavailable,
    InvalidArgument,
    NoSuchUser,
    NotExecutable,
    NotFound,
    WrongState,
)
from squib.sdk.aio import AsyncVM
from squib.sdk.images import AsyncImages
from squib.undo import AsyncUndo

PROJECT = "inspect"
"""The project of every VM that Inspect starts: `squib ls --project inspect` lists them."""

_NOT_FOUND_EXIT = 127
_CANNOT_START_EXIT = 126


class SquibSandboxConfig(BaseModel):
    """What each sample's VM is made of.

    A TOML file with these fields is accepted as well.

    - ``runtime``, ``vcpu_count``, ``mem_size_mib``, ``disk_size_mib``, ``env_vars``: as in `squib.VMConfig`.
    - ``user``: who runs commands and owns files, unless a call names another user.
    - ``working_dir``: the directory of the sample's files, which is created. Relative paths start there.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    runtime: str = "base"
    vcpu_count: int = 1
    mem_size_mib: int | None = None
    disk_size_mib: int = 10240
    env_vars: dict[str, str] = {}
    user: str = "root"
    working_dir: str = "/workspace"


@sandboxenv(name="squib")
class SquibSandboxEnvironment(SandboxEnvironment):
    """A sample's VM.

    Commands and files act as ``config.user`` in ``config.working_dir``.
    """

    def __init__(self, vm: AsyncVM, config: SquibSandboxConfig) -> None:
        super().__init__()
        self.vm = vm
        self._config = config

    @classmethod
    async def start(cls, config: SquibSandboxConfig) -> SquibSandboxEnvironment:
        """Start a VM that lives until `close` or the end of this program."""
        vm = AsyncVM(
            project=PROJECT,
            runtime=config.runtime,
            vcpu_count=config.vcpu_count,
            mem_size_mib=config.mem_size_mib,
            disk_size_mib=config.disk_size_mib,
            env_vars=config.env_vars,
        )
        await vm.__aenter__()
        environment = cls(vm, config)
        async with AsyncUndo(environment.close):
            await environment.make_working_dir()
        return environment

    async def make_working_dir(self) -> None:
        """Create the working directory, owned by the configured user."""
        await self.vm.run(
            ["install", "-d", "-o", self._config.user, self._config.working_dir], user="root", cwd="/", check=True
        )

    async def close(self) -> None:
        """Delete the VM. Idempotent."""
        await self.vm.__aexit__(None, None, None)

    # --- what Inspect calls around tasks and samples ------------------------------------------------------------

    @classmethod
    async def task_init(cls, task_name: str, config: SandboxEnvironmentConfigType | None) -> None:
        """Build the image before the first sample needs it."""
        await AsyncImages().build(_read_config(config).runtime)

    @classmethod
    async def sample_init(
        cls, task_name: str, config: SandboxEnvironmentConfigType | None, metadata: dict[str, str]
    ) -> dict[str, SandboxEnvironment]:
        """Start the sample's VM."""
        return {"default": await cls.start(_read_config(config))}

    @classmethod
    async def sample_cleanup(
        cls,
        task_name: str,
        config: SandboxEnvironmentConfigType | None,
        environments: dict[str, SandboxEnvironment],
        interrupted: bool,
    ) -> None:
        """Delete the sample's VM."""
        for environment in environments.values():
            await environment.as_type(cls).close()

    @classmethod
    async def cli_cleanup(cls, id: str | None) -> None:
        """Delete the VM ``id``, or with ``None`` all VMs that Inspect started.

        ``inspect sandbox cleanup squib`` calls this.
        """
        for info in await AsyncVM.list(project=PROJECT):
            if id in (None, info.vm_id, info.name):
                vm = await AsyncVM.from_id(info.vm_id)
                await vm.delete()
                await vm.close()

    @classmethod
    def config_files(cls) -> list[str]:
        """Return the names of the files that Inspect looks for next to a task.

        ``squib.toml`` configures the task's VMs.
        """
        return ["squib.toml"]

    @classmethod
    def config_deserialize(cls, config: dict[str, Any]) -> BaseModel:
        """Read a configuration from an Inspect log."""
        return SquibSandboxConfig.model_validate(config)

    async def connection(self, *, user: str | None = None) -> SandboxConnection:
        """Return the command that opens a shell in the VM."""
        command = ["squib", "exec", "-it", "--user", user or self._config.user, self.vm.vm_id, "/bin/sh", "-l"]
        return SandboxConnection(type="squib", command=shlex.join(command))

    # --- commands and files -------------------------------------------------------------------------------------

    async def exec(
        self,
        cmd: list[str],
        input: str | bytes | None = None,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        user: str | None = None,
        timeout: int | None = None,
        timeout_retry: bool = True,
        concurrency: bool = True,
    ) -> ExecResult[str]:
        """Run a command.

        A command that times out is killed with its descendants, and not run again. If the command, the user or the
        directory does not exist, the result is a failure, as from a shell.
        """
        try:
            result = await self.vm.run(
                cmd, input=input, cwd=self._resolve(cwd or ""), env=env, user=user or self._config.user, timeout=timeout
            )
        except CommandNotFound as error:
            return ExecResult(False, _NOT_FOUND_EXIT, "", error.message)
        except (NoSuchUser, BadWorkingDirectory) as error:
            return ExecResult(False, _CANNOT_START_EXIT, "", error.message)
        except NotExecutable as error:
            raise PermissionError(error.message) from error
        except (NotFound, WrongState, AgentUnreachable, EngineUnavailable) as error:
            raise SandboxUnavailableError(str(error)) from error
        if result.timed_out:
            raise TimeoutError(f"the command timed out after {timeout} s")
        limit = SandboxEnvironmentLimits.MAX_EXEC_OUTPUT_SIZE
        for output in (result.stdout_bytes, result.stderr_bytes):
            if len(output) > limit or result.truncated:
                kept = output[:limit].decode(errors="replace")
                raise OutputLimitExceededError(SandboxEnvironmentLimits.MAX_EXEC_OUTPUT_SIZE_STR, kept)
        return ExecResult(result.ok, result.exit_code, result.stdout, result.stderr)

    async def write_file(self, file: str, contents: str | bytes) -> None:
        """Write a file as the configured user, and create missing parents."""
        data = contents.encode() if isinstance(contents, str) else contents
        await self.vm.files.write(self._resolve(file), data, parents=True, user=self._config.user)

    @overload
    async def read_file(self, file: str, text: Literal[True] = True) -> str: ...

    @overload
    async def read_file(self, file: str, text: Literal[False]) -> bytes: ...

    async def read_file(self, file: str, text: bool = True) -> str | bytes:
        """Read a file as the configured user."""
        limit = SandboxEnvironmentLimits.MAX_READ_FILE_SIZE
        content = await self.vm.files.read(self._resolve(file), length=limit + 1, user=self._config.user)
        if len(content) > limit:
            raise OutputLimitExceededError(SandboxEnvironmentLimits.MAX_READ_FILE_SIZE_STR, None)
        return content.decode() if text else content

    def _resolve(self, path: str) -> str:
        return posixpath.join(self._config.working_dir, path)


def _read_config(config: SandboxEnvironmentConfigType | None) -> SquibSandboxConfig:
    """Return the configuration from a value, or the path of a TOML file.

    Raises `InvalidArgument`.
    """
    if config is None:
        return SquibSandboxConfig()
    if isinstance(config, SquibSandboxConfig):
        return config
    if isinstance(config, BaseModel):
        raise InvalidArgument(
            f"a squib sandbox cannot be configured by {type(config).__name__}",
            hint="use squib.integrations.inspect.SquibSandboxConfig, or the path of a TOML file",
        )
    try:
        return SquibSandboxConfig.model_validate(tomllib.loads(Path(config).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"cannot read the sandbox configuration {config}: {error}") from error
