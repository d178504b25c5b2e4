"""`kill -9` of the engine before and after each write to its database, while it runs a VM on a real VMM.

In a nested VM, two of three writes are left out.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator

import pytest

from squib import VMConfig
from squib.core.engine import Engine
from squib.core.lifecycle.create import create_vm
from squib.core.lifecycle.delete import delete_vm
from squib.core.lifecycle.stop import stop_vm
from squib.core.startup import open_engine
from squib.drivers.registry import find_drivers
from squib.host.probe import probe_kvm
from squib.paths import Home
from tests.fakes.engine import Rig
from tests.kills import check_every_write
from tests.vm.conftest import PATIENCE, end_engine

BOOT_TIMEOUT_S = 30 * PATIENCE


class RealRig(Rig):
    """Its drivers are this host's."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.config = VMConfig(driver=os.environ.get("SQUIB_DRIVER", "auto"))

    @contextlib.asynccontextmanager
    async def engine(self) -> AsyncIterator[Engine]:
        async with open_engine(self.home, await find_drivers(self.home)) as engine:
            yield engine


@pytest.fixture
def rig(home: Home) -> Iterator[RealRig]:
    if not asyncio.run(probe_kvm()).usable:
        pytest.skip(
            "without KVM it would take two minutes; tests/unit/core/test_kill.py does the same on a fake driver"
        )
    end_engine(home)
    rig = RealRig(home)
    yield rig
    rig.clean_up()


async def short_life(engine: Engine, rig: Rig) -> None:
    config = rig.config.model_copy(update={"vm_id": "first"})
    await create_vm(engine, config, start=True, on_progress=lambda _: None, boot_timeout_s=BOOT_TIMEOUT_S)
    await stop_vm(engine, "first")
    await delete_vm(engine, "first")


@pytest.mark.nested
@pytest.mark.parametrize("after", [False, True])
def test_whatever_the_write_that_was_the_last(rig: RealRig, after: bool) -> None:
    step = max(1, round(PATIENCE / 3))
    assert check_every_write(rig, short_life, after=after, step=step, patience=PATIENCE) > 10 / step
