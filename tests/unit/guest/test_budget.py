"""A guest that floods the engine delays only itself."""

import asyncio
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from squib.errors import SquibError
from squib.guest import budget as budget_module
from squib.guest.agent import AgentClient
from squib.guest.budget import LoopBudget
from squib.models import ExecRequest
from squib.protocol.frames import FrameDecoder, FrameKind
from tests.fakes import flood
from tests.fakes.agent import FakeAgent
from tests.fakes.guest import connector, serve_agent

_GUESTS = 3


def test_useless_work_gets_a_small_share() -> None:
    budget = LoopBudget()
    spent = waited = 0.0
    for _ in range(1000):
        budget.spend(0.001)
        spent += 0.001
        waited += budget.throttle()
    budget.release()
    assert 0.04 < spent / waited < 0.06


def test_guests_divide_the_share() -> None:
    budgets = [LoopBudget() for _ in range(10)]
    waited = dict.fromkeys(budgets, 0.0)
    for _ in range(1000):
        for budget in budgets:
            budget.spend(0.001)
            waited[budget] += budget.throttle()
    for budget in budgets:
        budget.release()
        assert 0.004 < 1 / waited[budget] < 0.006


def test_useful_work_is_not_throttled() -> None:
    budget = LoopBudget()
    for _ in range(10_000):
        budget.earn_request()
        budget.spend(0.002)
        budget.earn_received(256 * 1024)
        budget.spend(0.001)
        budget.spend_delivery()
        assert budget.throttle() == 0


def test_no_wait_is_long() -> None:
    budget = LoopBudget()
    budget.spend(100)
    assert budget.throttle() == 1
    budget.spend(0.001)
    assert budget.throttle() < 0.1
    budget.release()


def test_earnings_cannot_be_hoarded() -> None:
    budget = LoopBudget()
    budget.earn_received(1 << 40)
    budget.spend(0.3)
    assert budget.throttle() > 0
    budget.release()


# --- the connection of a throttled guest ------------------------------------------------------------------------


@pytest.fixture
def every_turn_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock finds that a turn's time is over, so the guest is always in debt."""
    ticks = itertools.count()
    monkeypatch.setattr(LoopBudget, "clock", staticmethod(lambda: next(ticks) * 0.01))
    monkeypatch.setattr(budget_module, "_MAX_WAIT_S", 0.002)


@pytest.mark.anyio
@pytest.mark.usefixtures("every_turn_is_too_long")
async def test_a_throttled_guest_is_read_from_again_after_its_reader_stopped(tmp_path: Path) -> None:
    """As when a client is suspended: the guest's window fills, and what it sends then arrives to the last byte."""
    async with asyncio.timeout(20), serve_agent(tmp_path / "agent.sock", FakeAgent()):
        client = AgentClient(connector(tmp_path / "agent.sock"))
        async with await client.exec(ExecRequest(argv=["flood", "2048"])) as response:
            while response.window > 0:
                await asyncio.sleep(0.001)
            await client.connect(timeout_s=10)  # others are served meanwhile
            body = b"".join([piece async for piece in response.stream()])
        frames = list(FrameDecoder().feed(body))
        assert sum(len(frame.payload) for frame in frames if frame.kind is FrameKind.STDOUT) == 2048 * 1024
        assert frames[-1].kind is FrameKind.EXIT
        await client.close()


@pytest.mark.anyio
@pytest.mark.usefixtures("every_turn_is_too_long")
async def test_a_throttled_guest_answers_every_request(tmp_path: Path) -> None:
    async with asyncio.timeout(20), serve_agent(tmp_path / "agent.sock", FakeAgent()):
        client = AgentClient(connector(tmp_path / "agent.sock"))
        for _ in range(20):
            await client.connect(timeout_s=10)
        await client.close()


# --- real floods -------------------------------------------------------------------------------------------------


@contextmanager
def flooding_guests(folder: Path, kind: str) -> Iterator[list[Path]]:
    """Hostile guests, each a process that listens on a socket."""
    paths = [folder / f"hostile{number}.sock" for number in range(_GUESTS)]
    guests = [subprocess.Popen([sys.executable, flood.__file__, str(path), kind]) for path in paths]
    try:
        deadline = time.monotonic() + 20
        while not all(path.exists() for path in paths):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield paths
    finally:
        for guest in guests:
            guest.kill()
            guest.wait()


@asynccontextmanager
async def clients_of(paths: list[Path]) -> AsyncIterator[None]:
    """For each guest a client that reads what it sends, as for a terminal, and asks again whenever it has failed."""

    async def read(client: AgentClient) -> None:
        while True:
            try:
                async with await client.exec(ExecRequest(argv=["true"])) as response:
                    decoder = FrameDecoder()
                    async for part in response.stream():
                        list(decoder.feed(part))
            except SquibError:
                await asyncio.sleep(0.05)

    clients = [AgentClient(connector(path)) for path in paths]
    reading = [asyncio.create_task(read(client)) for client in clients]
    try:
        yield
    finally:
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        for client in clients:
            await client.close()


async def latencies(client: AgentClient, seconds: float) -> list[float]:
    """Return how long requests take, in CPU time of the event loop: other processes of the host do not matter."""
    found = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.thread_time()
        await client.connect(timeout_s=10)
        found.append(time.thread_time() - began)
    return found


@pytest.mark.slow
@pytest.mark.anyio
@pytest.mark.parametrize("kind", flood.KINDS)
async def test_a_flood_delays_nobody_else(tmp_path: Path, kind: str) -> None:
    with flooding_guests(tmp_path, kind) as hostile:
        async with asyncio.timeout(60), serve_agent(tmp_path / "agent.sock", FakeAgent()):
            client = AgentClient(connector(tmp_path / "agent.sock"))
            await latencies(client, 0.2)
            idle = await latencies(client, 1)
            async with clients_of(hostile):
                await latencies(client, 0.2)
                flooded = await latencies(client, 2)
            await client.close()
    assert statistics.median(flooded) < 2 * statistics.median(idle)
    assert statistics.quantiles(flooded, n=100)[98] < 0.1  # not the slowest of all: Python collects garbage, too
