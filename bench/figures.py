"""The table of all figures: what is measured, and what each must reach."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum


class Unit(Enum):
    """A unit: its symbol, its size, and the decimals that are shown.

    Sizes are in seconds, bytes, bytes per second or plain numbers.
    """

    S = ("s", 1.0, 2)
    MS = ("ms", 1e-3, 1)
    MIB = ("MiB", float(1 << 20), 1)
    MIB_PER_S = ("MiB/s", float(1 << 20), 1)
    RATIO = ("", 1.0, 2)

    @property
    def symbol(self) -> str:
        return self.value[0]

    def of(self, amount: float) -> float:
        """Convert an amount to this unit.

        The amount is in seconds, bytes, bytes per second, or a plain number.
        """
        return amount / self.value[1]

    def show(self, amount: float) -> str:
        """Format an amount: ``29.7 ms`` for 0.0297."""
        return f"{self.of(amount):.{self.value[2]}f} {self.symbol}".rstrip()


@dataclass(frozen=True)
class Figure:
    """A figure, and the bounds of its median.

    ``at_most`` and ``at_least`` are in ``unit``. Without them, no claim is made.
    """

    name: str
    title: str
    unit: Unit
    at_most: float | None = None
    at_least: float | None = None

    def holds(self, amount: float) -> bool | None:
        """Return whether an amount is within the bounds, or ``None``.

        ``None`` means that no claim is made.
        """
        if self.at_most is None and self.at_least is None:
            return None
        value = self.unit.of(amount)
        return (self.at_most is None or value <= self.at_most) and (self.at_least is None or value >= self.at_least)

    def claim(self) -> str:
        """Format the bounds: ``≤ 20 ms``; empty if no claim is made."""
        bounds = (("≤", self.at_most), ("≥", self.at_least))
        return " ".join(f"{sign} {bound:g} {self.unit.symbol}".rstrip() for sign, bound in bounds if bound is not None)


FIGURES = (
    Figure("cold-start", "create, boot and first command (SDK)", Unit.S, 4.5),
    Figure("create", "  of that: create", Unit.MS),
    Figure("boot", "  of that: boot until the agent answers", Unit.S),
    Figure("first-exec", "  of that: first command", Unit.MS),
    Figure("clone-start", "create, clone and first command (SDK)", Unit.S, 1.5),
    Figure("clone", "  of that: start the clone until the agent answers", Unit.MS),
    Figure("clone-exec", "  of that: first command", Unit.MS),
    Figure("clone-ratio", "  clone against boot, to the first command", Unit.RATIO, 0.4),
    Figure("fork", "fork an idle VM of 256 MiB", Unit.MS),
    Figure("fork-first", "  until the fork has run its first command", Unit.MS, 700),
    Figure("fork-pause", "  how long the VM stands still meanwhile", Unit.MS, 150),
    Figure("fork-ten", "ten forks of it, until all are ready", Unit.S, 4),
    Figure("fork-memory", "a fork's memory (PSS) after its first command", Unit.MIB, 60),
    Figure("fork-large-ratio", "fork of 1 GiB with 100 MiB written, against that of 256 MiB", Unit.RATIO, 2),
    Figure("snapshot", "snapshot of a VM of 256 MiB", Unit.MS, 1000),
    Figure("restore-first", "a VM made from it, until its first command has ended", Unit.MS, 700),
    Figure("suspend", "suspend it", Unit.MS, 1000),
    Figure("resume-first", "let it go on, until its first command has ended", Unit.MS, 700),
    Figure("burst-p50", "20 VMs created at once, first command: the median", Unit.S),
    Figure("burst-p95", "  of them, the 95th percentile", Unit.S),
    Figure("warm-exec", 'run(["true"]), warm (SDK)', Unit.MS, 20),
    Figure("warm-exec-shell", 'run("true"), warm: through /bin/sh', Unit.MS),
    Figure("warm-exec-guest", '  of run(["true"]): start to end in the guest', Unit.MS),
    Figure("engine-request", "a request that the engine answers alone", Unit.MS),
    Figure("cli-exec", "squib exec VM true, whole process", Unit.MS, 400),
    Figure("cli-help", "squib --help, whole process", Unit.MS, 200),
    Figure("cli-ls", "squib ls, whole process, engine up", Unit.MS, 350),
    Figure("engine-start", "engine start until its first answer", Unit.S, 1.2),
    Figure("engine-rss", "engine's RSS, idle", Unit.MIB, 120),
    Figure("engine-rss-5-vms", "engine's RSS with 5 VMs", Unit.MIB, 120),
    Figure("vm-memory", "VMM's PSS after boot and one command, 128 MiB guest", Unit.MIB),
    Figure("stop", "stop, in order", Unit.MS),
    Figure("delete-stopped", "delete a stopped VM", Unit.MS),
    Figure("delete-running", "delete a running VM", Unit.MS),
    Figure("stdout", "a command's output, 64 MiB", Unit.MIB_PER_S),
    Figure("stdin", "a command's input, 64 MiB", Unit.MIB_PER_S),
    Figure("upload", "a file of 256 MiB to the guest's disk", Unit.MIB_PER_S),
    Figure("port-in-file", "  dd of a bare port to the disk", Unit.MIB_PER_S),
    Figure("upload-ratio", "  squib against dd", Unit.RATIO, at_least=0.6),
    Figure("port-in", "  dd of a bare port to /dev/null", Unit.MIB_PER_S),
    Figure("download", "a file of 256 MiB from the guest's disk", Unit.MIB_PER_S),
    Figure("port-out-file", "  dd of the disk to a bare port", Unit.MIB_PER_S),
    Figure("download-ratio", "  squib against dd", Unit.RATIO, at_least=0.6),
    Figure("port-out", "  dd of /dev/zero to a bare port", Unit.MIB_PER_S),
    Figure("exec-idle", 'run(["true"]), nothing else going on', Unit.MS),
    Figure("exec-busy", 'run(["true"]) while 1 GiB is uploaded', Unit.MS),
    Figure("exec-busy-ratio", "  the latter against the former (medians)", Unit.RATIO, 3),
    Figure("hostile-idle", 'run(["true"]), three hostile VMs stand still', Unit.MS),
    Figure("hostile-busy", 'run(["true"]), the same three VMs only compute', Unit.MS),
    Figure("hostile-exec", 'run(["true"]), three hostile VMs attack', Unit.MS),
    Figure("hostile-ratio", "  the latter against the former (medians)", Unit.RATIO, 2),
    Figure("hostile-disk", "  what they take of the host's disk meanwhile", Unit.MIB, 8),
)

BY_NAME = {figure.name: figure for figure in FIGURES}


@dataclass(frozen=True)
class Summary:
    """A measured figure.

    Amounts are in seconds, bytes, bytes per second, or plain numbers.
    """

    figure: Figure
    median: float
    minimum: float
    maximum: float
    count: int

    @property
    def reached(self) -> bool | None:
        """Whether the median is within the bounds, or ``None``.

        ``None`` means that no claim is made.
        """
        return self.figure.holds(self.median)


@dataclass
class Results:
    """All samples that were taken, by the name of the figure."""

    samples: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, amount: float) -> None:
        """Add a sample of a figure.

        The amount is in seconds, bytes, bytes per second, or a plain number.
        """
        self.samples.setdefault(BY_NAME[name].name, []).append(amount)

    def median(self, name: str) -> float:
        """Return the median of a figure's samples so far."""
        return statistics.median(self.samples[name])

    def summaries(self, names: Iterable[str]) -> list[Summary]:
        """Return the measured figures of ``names``, in the table's order."""
        wanted = set(names)
        return [
            Summary(figure, statistics.median(taken), min(taken), max(taken), len(taken))
            for figure in FIGURES
            if figure.name in wanted and (taken := self.samples.get(figure.name))
        ]
