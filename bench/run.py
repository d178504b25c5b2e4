"""The parameters of every measurement, and groups of figures."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from bench.figures import Results
from squib import AsyncVM, EngineClient
from squib.paths import Home

MEM_SIZE_MIB = 128


@dataclass(frozen=True)
class Bench:
    """Where to measure, how often, and where results go."""

    home: Home
    runs: int
    results: Results
    on_run: Callable[[int, int], None]
    """Called before each run with its index and the number of runs."""

    def client(self) -> EngineClient:
        return EngineClient(home=self.home)

    async def vm(self, engine: EngineClient, *, cold: bool = False) -> AsyncVM:
        return await AsyncVM.create(engine=engine, mem_size_mib=MEM_SIZE_MIB, cold=cold)


@dataclass(frozen=True)
class Group:
    """Figures that are measured together."""

    title: str
    figures: tuple[str, ...]
    measure: Callable[[Bench], Awaitable[None]]
