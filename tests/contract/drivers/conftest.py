"""Fixtures of the driver suite: each test runs on every driver; on real VMMs with the tests on VMs (``-m vm``)."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.drivers.implementations import Subject, subject


@pytest.fixture(
    params=["fake", "stub", *(pytest.param(name, marks=pytest.mark.vm) for name in ("jailed stub", "qemu"))]
)
async def machine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Subject]:
    async with subject(request.param, tmp_path) as made:
        yield made
