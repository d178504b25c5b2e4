"""The machine that the figures were measured on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from squib import EngineClient, SquibError
from squib.host import proc
from squib.paths import Home
from squib.version import VERSION


@dataclass(frozen=True)
class Machine:
    """The host's hardware and software, and its load.

    ``load`` is how many processes wanted a CPU in the minute before: figures of a busy host are worth less.
    """

    cpu: str
    cores: int
    host_kernel: str
    accelerator: str
    vmm: str
    python: str
    squib: str
    load: float

    def describe(self) -> str:
        """Describe the machine in two lines."""
        return (
            f"squib {self.squib}, {self.vmm}, accelerator {self.accelerator}, Python {self.python}\n"
            f"{self.cpu}, {self.cores} cores, Linux {self.host_kernel}, load {self.load:.1f} before"
        )


async def look_at_machine(home: Home) -> Machine:
    """Return a description of the host and of the engine of ``home``."""
    load = os.getloadavg()[0]
    async with EngineClient(home=home) as engine:
        info = await engine.info()
    return Machine(
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        host_kernel=platform.release(),
        accelerator=info.accelerator,
        vmm=_qemu_version() if info.driver == "qemu" else info.driver,
        python=platform.python_version(),
        squib=VERSION,
        load=load,
    )


def _cpu_model() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return " ".join(found[1].split()) if found else platform.machine()


def _qemu_version() -> str:
    try:
        program = proc.find_tool("qemu-system-x86_64")
    except SquibError:
        return "QEMU"
    text = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"version (\S+)", text)
    return f"QEMU {found[1]}" if found else "QEMU"
