"""A demo for newcomers (`make demo`): a VM's life, and how long it takes.

The VM boots, runs two commands and is deleted.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.text import Text

from squib import AsyncVM, EngineClient, ExecResult, SquibError, VMConfig, VMInfo
from squib.cli.actions.launch import ensure_assets
from squib.cli.args.units import show_mib
from squib.cli.render import Output, printable
from squib.models import EngineInfo

T = TypeVar("T")

FIRST_COMMAND = ("python3", "-c", 'import platform; print("Python", platform.python_version(), "says", 6 * 7)')
SECOND_COMMAND = ("uname", "-a")
NEXT_COMMAND = ("run", "--", "python3", "-c", "print(6 * 7)")
_STEP_CHARS = 16
_TIME_CHARS = 9


class Teller:
    """Prints each step when it ends, and on a terminal while it runs."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)

    async def step(self, name: str, work: Awaitable[T], describe: Callable[[T], str] = lambda _: "") -> T:
        """Do ``work``; print its time and its result in one line."""
        start = time.perf_counter()
        with self._console.status(name) if self._console.is_terminal else nullcontext():
            result = await work
        took = _show_time(time.perf_counter() - start)
        self._print(
            Text.assemble(
                ("  ✓ ", "green"),
                name.ljust(_STEP_CHARS),
                (took.rjust(_TIME_CHARS), "bold cyan"),
                ("   " + printable(describe(result)), "dim"),
            )
        )
        return result

    async def command(self, name: str, vm: AsyncVM, argv: tuple[str, ...]) -> str:
        """Run a command in the VM; print its time and its output.

        Returns the output.
        """

        def describe(_: ExecResult) -> str:
            return shlex.join(argv)

        result = await self.step(name, vm.run(argv, check=True), describe)
        for line in result.output.splitlines():
            self._print(Text.assemble(" " * (_STEP_CHARS + _TIME_CHARS + 7), (printable(line), "bold")))
        return result.output

    def say(self, *parts: str | tuple[str, str]) -> None:
        """Print a line between empty ones."""
        self._print(Text.assemble("\n", *parts))

    def _print(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)


def _show_time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def _describe_engine(info: EngineInfo) -> str:
    return f"squib {info.version}, {info.driver} with {info.accelerator}"


def _describe_vm(info: VMInfo) -> str:
    cpus = "1 vCPU" if info.vcpu_count == 1 else f"{info.vcpu_count} vCPUs"
    return f"{info.name}: {cpus}, {show_mib(info.mem_size_mib)} of memory, {show_mib(info.disk_size_mib)} of disk"


async def demo(teller: Teller) -> None:
    """Show the life of a VM.

    The VM is always deleted.
    """
    teller.say(("A microVM, from nothing to nothing", "bold"), "\n")
    async with EngineClient() as engine:
        await teller.step("engine", engine.info(), _describe_engine)
        await ensure_assets(Output(), engine, VMConfig())
        vm = await teller.step("create", AsyncVM.create(engine=engine), lambda vm: _describe_vm(vm.info))
        try:
            await teller.step("boot", vm.start(), lambda _: "kernel, root filesystem and agent are up")
            await teller.command("first command", vm, FIRST_COMMAND)
            await teller.command("second command", vm, SECOND_COMMAND)
            guest_kernel = (await vm.run(["uname", "-r"], check=True)).stdout.strip()
            await teller.step("delete", vm.delete(), lambda _: "nothing of it is left")
        finally:
            await vm.delete()
    teller.say(f"The VM ran Linux {printable(guest_kernel)}; this host runs Linux {platform.release()}.")
    teller.say("Now type:  ", (shlex.join((_squib_command(), *NEXT_COMMAND)), "bold green"))


def _squib_command() -> str:
    """Return how to type `squib` here.

    Returns the name if it is on the PATH, else the path in this environment.
    """
    script = Path(sys.executable).with_name("squib")
    on_path = shutil.which("squib")
    if on_path and Path(on_path).samefile(script):
        return "squib"
    return os.path.relpath(script) if script.is_relative_to(Path.cwd()) else str(script)


def main() -> int:
    """Run the demo; return the status of the process."""
    try:
        asyncio.run(demo(Teller()))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except SquibError as error:
        Output().error(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
