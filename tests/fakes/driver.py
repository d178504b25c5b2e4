"""A driver whose VMMs are small Python processes (``vmm.py``): leases, kills and adoption are real, guests are not."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from squib.drivers.base import (
    Capabilities,
    Complete,
    ExitKind,
    ExitReason,
    MachineSpec,
    Problem,
    SavedMemory,
    check_supported,
)
from squib.errors import BootFailed, ToolFailed, WrongState
from squib.host import proc, processes, sockets
from squib.host.jail import Credentials
from squib.host.locks import FileLock
from squib.host.processes import Process, ProcessIdentity
from squib.models import Check
from tests.fakes import vmm


def agent_socket(folder: Path) -> Path:
    """Where the agent of a VM listens."""
    return folder / "agent.sock"


class FakeMachine:
    def __init__(self, process: Process, folder: Path) -> None:
        self._process, self._agent = process, agent_socket(folder)
        self._killed = False

    @property
    def pid(self) -> int:
        return self._process.pid

    async def connect_agent(self) -> socket.socket:
        return sockets.connect(self._agent, blocking=False)

    async def wait(self) -> ExitReason:
        await self._process.wait()
        self._agent.unlink(missing_ok=True)
        match self._process.returncode:
            case 0:
                return ExitReason(ExitKind.POWERED_OFF, "the guest powered off")
            case None:
                return ExitReason(ExitKind.UNKNOWN, "the VMM ended")
            case vmm.PANICKED:
                return ExitReason(ExitKind.GUEST_PANICKED, "the guest's kernel panicked")
            case code if code < 0:
                return ExitReason(ExitKind.KILLED, f"the VMM was killed by signal {-code}")
            case code:
                return ExitReason(ExitKind.FAILED, f"the VMM ended with status {code}")

    async def pause(self) -> None:
        self._signal(signal.SIGSTOP)
        while not await self.is_paused():
            await asyncio.sleep(0)

    async def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        try:
            os.kill(self._process.pid, number)
        except ProcessLookupError:
            raise ToolFailed("the VMM does not answer") from None

    async def is_paused(self) -> bool:
        try:
            stat = Path(f"/proc/{self._process.pid}/stat").read_text()
        except OSError:
            raise ToolFailed("the VMM does not answer") from None
        return stat.rpartition(")")[2].split()[0] == "T"

    async def save(self, memory: Path, devices: Path, *, size_mib: int) -> Complete:
        assert await self.is_paused()
        memory.write_text("mem")
        devices.write_text("devices")

        async def complete() -> None:
            memory.write_text("memory")

        return complete

    async def kill(self) -> None:
        await self._process.kill()
        await self.wait()

    async def detach(self) -> None:
        self._process.forget()

    def console_tail(self, max_bytes: int = 1 << 20, *, lines: int | None = None) -> bytes:
        return b"fake console\nlast line\n"


@dataclass
class FakeDriver:
    """``behaviour`` is the behaviour of the next VMMs, after those of ``first``.

    ``--ok``, ``--hang`` (never answers), ``--die``, ``--panic``, ``--panic-when-set-up`` or ``--deaf`` (does not power
    off).
    """

    behaviour: str = "--ok"
    first: list[str] = field(default_factory=list)
    forks: bool = True
    """Whether VMMs are forks of this process, which have its command line."""
    launched: list[MachineSpec] = field(default_factory=list)
    name: str = "fake"
    accelerator: str = "none"
    groups: tuple[int, ...] = ()
    guest_modules: tuple[str, ...] = ()
    nested: bool = False

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            pause=True, save=True, nested=self.nested, no_nested="it is a fake", nested_hint="modprobe fake"
        )

    release: str = "fake 1.0"

    async def fingerprint(self, spec: MachineSpec) -> dict[str, str]:
        return {"VMM": self.release, "machine": f"{spec.vcpu_count} {spec.memory.size_mib} {spec.boot_args}"}

    unusable: Problem | None = None

    def problem(self, *, jailer: bool = True) -> Problem | None:
        return self.unusable

    def console_log(self, folder: Path) -> Path:
        return folder / "console.log"

    def memory_overhead_mib(self, spec: MachineSpec) -> int:
        return 64

    async def checks(self) -> list[Check]:
        return []

    async def launch(
        self,
        spec: MachineSpec,
        folder: Path,
        identity: ProcessIdentity,
        credentials: Credentials | None,
        on_spawned: Callable[[int], None],
    ) -> FakeMachine:
        check_supported(self.name, self.capabilities, spec)
        self.launched.append(spec)
        if isinstance(spec.memory, SavedMemory) and spec.memory.memory.read_text() != "memory":
            raise BootFailed("the saved memory is damaged")
        with FileLock(identity.lock_path) as lock:
            if not lock.try_acquire():
                raise WrongState("a VMM of this VM still runs")
            behaviour = self.first.pop(0) if self.first else self.behaviour
            with sockets.listen(agent_socket(folder)) as listener:
                process = self._start(listener, behaviour, lock, folder / "vmm.log")
            for group in identity.cgroups:
                (group / "cgroup.procs").write_text(str(process.pid))
            try:
                on_spawned(process.pid)
            except BaseException:
                await FakeMachine(process, folder).kill()
                raise
        machine = FakeMachine(process, folder)
        if isinstance(spec.memory, SavedMemory):
            try:
                await machine.pause()
            except ToolFailed:
                raise BootFailed("the VMM has ended") from None
        return machine

    def _start(self, listener: socket.socket, behaviour: str, lock: FileLock, log_path: Path) -> Process:
        if self.forks:
            pid = vmm.fork(listener, behaviour, lock.fileno(), log_path)
            return Process(pid, os.pidfd_open(pid))
        argv = [sys.executable, vmm.__file__, str(listener.fileno()), behaviour]
        return proc.spawn(argv, lock=lock, pass_fds=(listener.fileno(),), log_path=log_path)

    async def adopt(self, folder: Path, identity: ProcessIdentity) -> FakeMachine | None:
        process = processes.adopt(identity)
        return FakeMachine(process, folder) if process else None
