"""What a VM object says of its VM after it was deleted, or was in another state than expected."""

import pytest

from squib import VM, AsyncVM, NotFound, Superseded, VMState, WrongState
from squib.core.lifecycle.delete import delete_vm
from squib.core.lifecycle.stop import stop_vm
from tests.fakes.served import Served


def test_a_deleted_vm_is_deleted(served: Served) -> None:
    """Before: still `running`."""
    vm = VM(served.rig.config).start()
    vm.delete()
    assert (vm.status, vm.info.state) == (VMState.DELETED, "deleted")
    vm.delete()
    with pytest.raises(NotFound):
        vm.start()


@pytest.mark.anyio
async def test_the_vm_of_a_block_is_deleted_afterwards(served: Served) -> None:
    async with AsyncVM(served.rig.config) as vm:
        assert vm.status is VMState.RUNNING
    assert vm.status is VMState.DELETED


def test_after_a_wrong_state_the_state_is_what_the_engine_said(served: Served) -> None:
    with VM(served.rig.config) as vm:
        served.call(lambda engine: stop_vm(engine, vm.vm_id, timeout_s=0))
        assert vm.status is VMState.RUNNING
        with pytest.raises(WrongState):
            vm.pause()
        assert vm.status is VMState.STOPPED
        with pytest.raises(WrongState):
            vm.run("true")
        assert vm.status is VMState.STOPPED


@pytest.mark.anyio
async def test_a_vm_that_somebody_else_deletes_meanwhile_is_deleted(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = await AsyncVM.create(served.rig.config)

    async def superseded(*args: object, **options: object) -> None:
        served.call(lambda engine: delete_vm(engine, vm.vm_id))
        raise Superseded("a delete ended this start")

    monkeypatch.setattr(vm._engine, "start_vm", superseded)
    with pytest.raises(Superseded):
        await vm.start()
    assert vm.status is VMState.DELETED
    await vm.close()
