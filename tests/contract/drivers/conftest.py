"""Fixtures of the driver suite: each test runs on every driver; on VMMs with the tests on VMs (``-m vm``)."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.drivers.implementations import Subject, subject

REAL = [pytest.mark.vm, pytest.mark.nested]


@pytest.fixture(
    params=[
        "fake",
        "stub",
        pytest.param("jailed stub", marks=pytest.mark.vm),
        pytest.param("qemu", marks=REAL),
        pytest.param("firecracker", marks=REAL),
    ]
)
async def machine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Subject]:
    async with subject(request.param, tmp_path) as made:
        yield made
