"""The detached engine with a fake driver, as a program: ``daemon.py HOME …`` as `squib.api.daemon` is started.

The files that its VMs boot from are those of a `tests.fakes.engine.Rig`.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from squib.api import daemon, server
from squib.core import startup
from squib.core.startup import open_engine
from squib.drivers.registry import Drivers
from squib.host import cgroup
from squib.images.overlay import OverlayStore
from squib.paths import Home
from tests.fakes.driver import FakeDriver
from tests.fakes.engine import write_overlay

PROGRAM = (sys.executable, __file__)


async def find_drivers(home: Home) -> Drivers:
    return Drivers.of(FakeDriver(forks=False))


if __name__ == "__main__":
    OverlayStore.create = write_overlay  # type: ignore[method-assign]
    cgroup.find_layout = cgroup.Layout
    startup._LOCK_TIMEOUT_S = 3600.0  # an engine that waits for its end instead of the other engine fails the test
    server.find_drivers = find_drivers
    server.open_engine = partial(open_engine, agent_binary=Path(sys.argv[1]).parent / "files" / "agent")
    daemon.main(PROGRAM)
