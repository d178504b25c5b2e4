"""Fixtures of the contract suite: each test runs against the real agent and against the fake one."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.agent.implementations import Implementation, implementation


@pytest.fixture(params=["real", "fake"])
async def agent(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Implementation]:
    async with implementation(request.param, tmp_path) as running:
        yield running


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[Implementation]:
    """Only the real agent, for what the fake does not pretend to do."""
    async with implementation("real", tmp_path) as running:
        yield running
