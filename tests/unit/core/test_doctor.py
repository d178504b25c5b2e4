"""What doctor finds, on hosts that lack something."""

from pathlib import Path

import pytest

from squib.core import doctor
from squib.drivers.registry import Drivers
from squib.errors import DependencyMissing, ImageCorrupt
from squib.host import proc
from squib.images.store import ImageStore
from squib.models import Check, CheckStatus, Fix
from squib.paths import Home
from squib.store.records import LeaseKind, Owner
from tests.fakes.driver import FakeDriver
from tests.fakes.engine import Rig


@pytest.fixture(autouse=True)
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    driver = FakeDriver()

    async def find_drivers(home: Home) -> Drivers:
        return Drivers.of(driver)

    monkeypatch.setattr(doctor, "find_drivers", find_drivers)
    return driver


async def check_host(home: Home) -> dict[str, Check]:
    return {check.name: check for check in await doctor.check_host(home)}


@pytest.mark.anyio
async def test_every_check_that_does_not_pass_says_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_tool(name: str) -> Path:
        raise DependencyMissing(f"{name} is not installed")

    monkeypatch.setattr(proc, "find_tool", find_tool)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr(doctor, "AGENT_BINARY", tmp_path / "nothing")
    checks = await check_host(Home(tmp_path))
    assert checks["mmdebstrap"].fix == Fix(
        argv=("apt-get", "install", "--no-install-recommends", "mmdebstrap"), as_root=True
    )
    assert checks["kernel"].fix == Fix(argv=("squib", "kernel", "build"))
    assert checks["image base"].fix == Fix(argv=("squib", "image", "build", "base"))
    assert "image python3.13" not in checks  # nobody has asked for it
    for check in checks.values():
        assert check.status is CheckStatus.OK or check.fix or check.name == "cgroups", check


@pytest.mark.anyio
async def test_a_state_directory_that_does_not_exist_yet_is_fine(tmp_path: Path) -> None:
    home = Home(tmp_path / "a" / "b")
    assert (await check_host(home))["state directory"].status is CheckStatus.OK
    assert not home.root.exists()


@pytest.mark.anyio
async def test_a_state_directory_that_is_a_file_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert (await check_host(Home(tmp_path / "file")))["state directory"].status is CheckStatus.FAIL


@pytest.mark.anyio
async def test_a_state_directory_that_others_can_read_is_a_warning(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    check = (await check_host(Home(tmp_path)))["state directory"]
    assert (check.status, check.fix) == (CheckStatus.WARN, Fix(argv=("chmod", "700", str(tmp_path))))


@pytest.mark.anyio
@pytest.mark.parametrize(("free_gib", "status"), [(60, CheckStatus.OK), (3, CheckStatus.WARN), (0.5, CheckStatus.FAIL)])
async def test_space(free_gib: float, status: CheckStatus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = int(free_gib * (1 << 30))

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    check = (await check_host(Home(tmp_path)))["space"]
    assert check.status is status
    assert f"{free_gib:.1f} GiB free" in check.detail


@pytest.mark.anyio
async def test_a_damaged_image_is_a_failure_that_a_rebuild_mends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verify(self: ImageStore, ref: str) -> None:
        raise ImageCorrupt(f"image {ref} is damaged")

    monkeypatch.setattr(ImageStore, "verify", verify)
    check = (await check_host(Home(tmp_path)))["image base"]
    assert (check.status, check.fix) == (
        CheckStatus.FAIL,
        Fix(argv=("squib", "image", "build", "base", "--rebuild")),
    )


@pytest.mark.anyio
@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n"])
async def test_an_agent_that_is_no_program_is_a_failure(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "agent"
    binary.write_bytes(content)
    monkeypatch.setattr(doctor, "AGENT_BINARY", binary)
    assert (await check_host(Home(tmp_path)))["agent"].status is CheckStatus.FAIL


@pytest.mark.parametrize(
    ("uid_map", "status"),
    [
        ("         0          0 4294967295\n", CheckStatus.OK),
        ("0 100000 65536\n", CheckStatus.FAIL),
        ("0 0 1\n1 100000 65535\n", CheckStatus.FAIL),
        ("0 0 65536\n1879048192 1879048192 134217728\n", CheckStatus.OK),
        ("", CheckStatus.FAIL),
    ],
)
def test_root_needs_uids_to_give_away(uid_map: str, status: CheckStatus) -> None:
    assert doctor.check_uid_map(uid_map).status is status


@pytest.mark.anyio
async def test_nothing_left_behind_is_fine(rig: Rig) -> None:
    async with rig.running() as engine:
        (check,) = doctor.check_engine(engine)
        assert check.status is CheckStatus.OK


@pytest.mark.anyio
async def test_what_was_left_behind_is_named(rig: Rig) -> None:
    async with rig.running() as engine:
        (engine.home.vms / "vm-gone").mkdir()
        engine.store.add_lease(Owner.vm("vm-old"), LeaseKind.CGROUP, "squib/x/vm-old")
        folders, leases = doctor.check_engine(engine)
        assert folders.fix == Fix(argv=("rm", "-r", "--", f"{engine.home.vms}/vm-gone"))
        assert "vm-old" in leases.detail


@pytest.mark.anyio
async def test_the_api_tells_both(rig: Rig, driver: FakeDriver) -> None:
    async with rig.http() as (_, http):
        names = [check["name"] for check in (await http.get("/v1/doctor")).json()["checks"]]
    assert names[0] == "python" and names[-1] == "leftovers"


@pytest.mark.anyio
async def test_a_repaired_database_is_mentioned(rig: Rig) -> None:
    rig.home.root.mkdir()
    rig.home.database.write_bytes(b"garbage")
    async with rig.http() as (_, http):
        checks = {check["name"]: check for check in (await http.get("/v1/doctor")).json()["checks"]}
    assert checks["database"]["status"] == "warn"
    assert f"{rig.home.database}.damaged" in checks["database"]["detail"]
