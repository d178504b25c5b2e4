"""The synchronous VM class, `VM`.

Its methods are the methods of `squib.AsyncVM`.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self, Unpack

from squib.models import OnProgress, ProcessInfo, PtySize, SnapshotInfo, VMConfig, VMInfo, VMState
from squib.sdk.aio import AsyncVM
from squib.sdk.client import EngineClient, Persistence
from squib.sdk.config import VMOptions
from squib.sdk.env import Env
from squib.sdk.portal import Portal
from squib.sdk.process import Process
from squib.sdk.result import MAX_OUTPUT_BYTES, ExecResult, OnOutput, Truncate
from squib.sdk.syncfiles import Files


class VM:
    """A Linux microVM. The constructor registers the VM; `start` boots it.

        with VM() as vm:  # starts the VM; deletes it on exit
            print(vm.run("uname -a").output)

    ``options`` are fields of `VMConfig` and override ``config``. ``engine`` defaults to the engine at ``$SQUIB_URL``,
    or to the local one; all `VM` objects share its connections. If the kernel or the image is not in the cache, it is
    built first, and ``on_progress`` is called with each build step, on squib's thread. The methods are thread-safe.

    A VM whose object was never used is deleted if the program is killed or interrupted.

    Raises `InvalidArgument`, `NameTaken`, `DiskFull`, and the errors of `Images.build`.
    """

    def __init__(
        self,
        config: VMConfig | None = None,
        *,
        engine: EngineClient | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[VMOptions],
    ) -> None:
        self._portal = Portal.get()
        engine = engine or self._portal.engine()
        self._async_vm = AsyncVM(config, engine=engine, on_progress=on_progress, **options)
        self._portal.run(self._async_vm._reserve())
        self._portal.undecided[self._async_vm] = self._async_vm._keep

    @classmethod
    def _wrap(cls, portal: Portal, vm: AsyncVM) -> Self:
        self = cls.__new__(cls)
        self._portal = portal
        self._async_vm = vm
        return self

    @property
    def _vm(self) -> AsyncVM:
        """The VM, which stops depending on this program when it is first used.

        `_bound_vm` returns it without this change, for VMs that stay bound.
        """
        if self._async_vm in self._portal.undecided:
            self._portal.run(self._async_vm._keep())
            self._portal.undecided.pop(self._async_vm, None)
        return self._async_vm

    def _bound_vm(self) -> AsyncVM:
        self._portal.undecided.pop(self._async_vm, None)
        return self._async_vm

    def __repr__(self) -> str:
        return repr(self._async_vm).replace("AsyncVM", "VM", 1)

    @classmethod
    def from_id(cls, vm_id: str, *, engine: EngineClient | None = None) -> Self:
        """Look up a VM by ID or name. Raises `NotFound`, `InvalidArgument`."""
        portal = Portal.get()
        return cls._wrap(portal, portal.run(AsyncVM.from_id(vm_id, engine=engine or portal.engine())))

    @classmethod
    def list(cls, *, project: str | None = None, engine: EngineClient | None = None) -> list[VMInfo]:
        """List all VMs, or the VMs of one project, oldest first."""
        portal = Portal.get()
        return portal.run(AsyncVM.list(project=project, engine=engine or portal.engine()))

    @property
    def info(self) -> VMInfo:
        """The cached VM details; `refresh` updates them."""
        return self._vm.info

    @property
    def vm_id(self) -> str:
        """The VM's ID."""
        return self._vm.vm_id

    @property
    def name(self) -> str:
        """The VM's name."""
        return self._vm.name

    @property
    def status(self) -> VMState:
        """The cached VM state; `refresh` updates it."""
        return self._vm.status

    @property
    def env(self) -> Env:
        """The environment variables that every command gets."""
        return Env(self._portal, self._vm.env)

    @property
    def files(self) -> Files:
        """The guest's files."""
        return Files(self._portal, self._vm.files)

    def home(self, user: str | None = None) -> str:
        """See `AsyncVM.home`."""
        return self._portal.run(self._vm.home(user))

    def refresh(self) -> VMInfo:
        """See `AsyncVM.refresh`."""
        return self._portal.run(self._vm.refresh())

    def start(self, boot_timeout: float = 30.0, *, bound: bool = False, cold: bool = False) -> Self:
        """See `AsyncVM.start`."""
        vm = self._bound_vm() if bound else self._vm
        self._portal.run(vm.start(boot_timeout, bound=bound, cold=cold))
        return self

    def stop(self, timeout: float = 3.0) -> Self:
        """See `AsyncVM.stop`."""
        self._portal.run(self._vm.stop(timeout))
        return self

    def pause(self) -> Self:
        """See `AsyncVM.pause`."""
        self._portal.run(self._vm.pause())
        return self

    def resume(self) -> Self:
        """See `AsyncVM.resume`."""
        self._portal.run(self._vm.resume())
        return self

    def suspend(self) -> Self:
        """See `AsyncVM.suspend`."""
        self._portal.run(self._vm.suspend())
        return self

    def snapshot(self, name: str | None = None, *, disk_only: bool = False, resume: bool = True) -> SnapshotInfo:
        """See `AsyncVM.snapshot`."""
        return self._portal.run(self._vm.snapshot(name, disk_only=disk_only, resume=resume))

    def fork(
        self,
        count: int = 1,
        *,
        name: str | None = None,
        persistence: Persistence = "ephemeral",
        boot_timeout: float = 30.0,
    ) -> builtins.list[Self]:
        """See `AsyncVM.fork`."""
        work = self._vm.fork(count, name=name, persistence=persistence, boot_timeout=boot_timeout)
        return [self._wrap(self._portal, vm) for vm in self._portal.run(work)]

    def rollback(self, snapshot: str | SnapshotInfo, boot_timeout: float = 30.0) -> Self:
        """See `AsyncVM.rollback`."""
        self._portal.run(self._vm.rollback(snapshot, boot_timeout))
        return self

    def delete(self) -> None:
        """See `AsyncVM.delete`."""
        self._portal.run(self._vm.delete())

    def close(self) -> None:
        """See `AsyncVM.close`."""
        self._portal.run(self._vm.close())

    def __enter__(self) -> Self:
        self._portal.run(self._bound_vm().__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._portal.run(self._vm.__aexit__(kind, error, trace))

    def wait_for_ready(self, timeout: float = 30.0) -> None:
        """See `AsyncVM.wait_for_ready`."""
        self._portal.run(self._vm.wait_for_ready(timeout))

    def run(
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
        """See `AsyncVM.run`.

        ``on_stdout`` and ``on_stderr`` run on squib's thread.
        """
        return self._portal.run(
            self._vm.run(
                cmd,
                check=check,
                timeout=timeout,
                env=env,
                cwd=cwd,
                user=user,
                sudo=sudo,
                input=input,
                on_stdout=on_stdout,
                on_stderr=on_stderr,
                max_output=max_output,
                truncate=truncate,
            )
        )

    def spawn(
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
    ) -> Process:
        """See `AsyncVM.spawn`."""
        work = self._vm.spawn(
            cmd, env=env, cwd=cwd, user=user, sudo=sudo, stdin=stdin, timeout=timeout, pty=pty,
            restore_signal=restore_signal,
        )  # fmt: skip
        return Process(self._portal, self._portal.run(work))

    def processes(self) -> builtins.list[ProcessInfo]:
        """See `AsyncVM.processes`."""
        return self._portal.run(self._vm.processes())

    def process(self, id: str) -> Process:
        """See `AsyncVM.process`."""
        return Process(self._portal, self._portal.run(self._vm.process(id)))

    def logs(self, *, lines: int | None = None) -> bytes:
        """See `AsyncVM.logs`."""
        return self._portal.run(self._vm.logs(lines=lines))
