"""What unit tests share: engines with a fake driver, in a state directory of their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from squib.host import cgroup
from squib.images.overlay import OverlayStore
from tests.fakes.engine import Rig, write_overlay

# A busy machine is no reason to fail, and every run tries the same values.
settings.register_profile("squib", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("squib")


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(OverlayStore, "create", write_overlay)
    monkeypatch.setattr("squib.sdk.client._HOLD_END_S", 0.05)
    monkeypatch.setattr(cgroup, "find_layout", cgroup.Layout)
    rig = Rig(tmp_path)
    yield rig
    rig.clean_up()
    assert rig.vmms() == []
