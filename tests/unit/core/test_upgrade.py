"""A state directory that an older squib wrote is brought to the present layout, and its VMs go on."""

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import pytest

from squib.core.guestio import logs
from squib.core.lifecycle.delete import delete_vm
from squib.core.lifecycle.start import start_vm
from squib.host import sockets
from squib.models import HostFileRef, VMState
from squib.paths import Home
from tests.fakes.engine import Rig

SCHEMA_1 = Path(__file__).parents[1] / "store" / "schemas" / "v1.sql"

pytestmark = pytest.mark.anyio


@pytest.fixture
def home(rig: Rig) -> Home:
    """The state directory of the dump: a VM that was created, one that was stopped, one whose VMM has ended."""
    rig.home.vms.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(rig.home.database)) as db:
        db.executescript(SCHEMA_1.read_text())
        db.execute("UPDATE vms SET accelerator = 'none'")
        db.commit()
    for vm_id in ("vm-created1", "vm-stopped1", "vm-running1"):
        rig.home.vm(vm_id).root.mkdir()
        rig.home.vm(vm_id).overlay.touch()
    return rig.home


async def test_logs_and_sockets_move_to_the_directory_of_the_driver(rig: Rig, home: Home) -> None:
    vm = home.vm("vm-stopped1")
    (vm.root / "console.log").write_bytes(b"old words\n")
    listener = sockets.listen(vm.root / "agent.sock")
    rig.driver.name = "qemu"
    async with rig.engine() as engine:
        assert logs.console(engine, "web", lines=None) == b"old words\n"
        sockets.connect(vm.qemu.agent_socket).close()
        assert sorted(path.name for path in vm.root.iterdir()) == ["overlay.ext4", "qemu"]
    async with rig.engine() as engine:  # again: nothing to move
        assert logs.console(engine, "web", lines=None) == b"old words\n"
    listener.close()


async def test_the_vms_are_there_and_can_be_used(rig: Rig, home: Home) -> None:
    rig.driver.name = "qemu"
    async with asyncio.timeout(20), rig.engine() as engine:
        states = {vm.vm_id: vm.state for vm in engine.store.list_vms()}
        assert states == {
            "vm-created1": VMState.CREATED,
            "vm-stopped1": VMState.STOPPED,
            "vm-running1": VMState.ERROR,
        }
        for vm_id in states:
            record = engine.store.get_vm(vm_id)
            kernel, rootfs = str(rig.config.kernel_path), str(rig.config.rootfs_path)
            changes = {"kernel": HostFileRef(path=kernel), "rootfs": HostFileRef(path=rootfs)}
            engine.store.set_spec(vm_id, record.spec.model_copy(update=changes))
            assert (await start_vm(engine, vm_id)).state is VMState.RUNNING
            await delete_vm(engine, vm_id)
        assert (engine.store.leases(), list(home.vms.iterdir())) == ([], [])
