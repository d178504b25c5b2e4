"""`VM` and `AsyncVM`: their life, and that they are the same."""

import asyncio
import inspect
import typing
from pathlib import Path

import pytest

from squib.errors import BootFailed, BootTimeout, InvalidArgument, NameTaken, NotFound, WrongState
from squib.models import VMConfig, VMState
from squib.sdk.aio import AsyncVM
from squib.sdk.aio_process import AsyncProcess
from squib.sdk.client import EngineClient
from squib.sdk.config import make_config
from squib.sdk.env import AsyncEnv, Env
from squib.sdk.process import Process
from squib.sdk.vm import VM
from tests.fakes.served import Served

pytestmark = pytest.mark.usefixtures("served")


def names() -> set[str]:
    return {vm.name for vm in VM.list()}


def test_a_vm_lives_in_a_with_block(served: Served) -> None:
    with VM(served.rig.config, name="mine", env_vars={"TOKEN": "hunter2"}) as vm:
        assert (vm.name, vm.status, vm.vm_id in repr(vm)) == ("mine", VMState.RUNNING, True)
        assert "mine" in names()
        assert vm.run(["true"]).ok
        assert repr(vm).startswith("<VM ") and "hunter2" not in repr(vm) + repr(vm.info) + repr(vars(vm._vm))
    assert names() == {"web"}
    vm.delete()


@pytest.mark.anyio
async def test_an_async_vm_does_too(served: Served) -> None:
    unmade = AsyncVM(served.rig.config, name="mine", env_vars={"TOKEN": "hunter2"})
    assert repr(unmade) == "<AsyncVM not created>"
    assert "hunter2" not in repr(vars(unmade))
    with pytest.raises(NotFound, match="has not been created"):
        _ = unmade.vm_id
    async with unmade as vm:
        assert (vm.name, vm.status) == ("mine", VMState.RUNNING)
        assert (await vm.run(["true"])).ok
    assert [info.name for info in await AsyncVM.list()] == ["web"]


def test_a_block_that_raises_deletes_its_vm(served: Served) -> None:
    with pytest.raises(ZeroDivisionError), VM(served.rig.config):
        assert len(names()) == 2
        raise ZeroDivisionError
    assert names() == {"web"}


def test_a_vm_that_does_not_boot_is_deleted(served: Served) -> None:
    served.rig.driver.behaviour = "--die"
    with pytest.raises(BootFailed, match="status 3") as caught, VM(served.rig.config):
        pytest.fail("it did not boot")
    assert "last line" in caught.value.detail
    assert names() == {"web"}

    async def main() -> None:
        with pytest.raises(BootFailed):
            async with AsyncVM(served.rig.config):
                pytest.fail("it did not boot")

    asyncio.run(main())
    assert names() == {"web"}


def test_a_vm_is_made_started_stopped_started_and_deleted(served: Served) -> None:
    vm = VM(served.rig.config)
    assert (vm.status, vm.info.pid) == (VMState.CREATED, None)
    assert vm.start() is vm and vm.status is VMState.RUNNING
    first = vm.info.pid
    assert vm.start().info.pid == first
    assert vm.stop() is vm and vm.status is VMState.STOPPED
    assert vm.stop().status is VMState.STOPPED
    assert vm.start().info.pid not in (None, first)
    vm.delete()
    vm.delete()
    assert names() == {"web"}
    with pytest.raises(NotFound):
        vm.refresh()
    vm.close()
    vm.close()


def test_a_vm_is_found_by_id_and_by_name_and_is_not_deleted_by_it(served: Served) -> None:
    by_name = VM.from_id("web")
    assert VM.from_id(by_name.vm_id).info == by_name.info
    by_name.close()
    assert names() == {"web"}
    with pytest.raises(NotFound, match="'nosuch'"):
        VM.from_id("nosuch")


@pytest.mark.parametrize("ref", ["..", "a/b", "-rf", "$(x)", "a" * 300, "a\0", "é", "", "%2e%2e", "web?x", "web#x"])
def test_hostile_names_do_not_leave_this_program(ref: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EngineClient, "stream", lambda *args: pytest.fail("a request was sent"))
    with pytest.raises(InvalidArgument, match="invalid name"):
        VM.from_id(ref)
    with pytest.raises(InvalidArgument, match="invalid name"):
        VM.list(project=ref)
    for field in ("vm_id", "name", "project", "runtime"):
        with pytest.raises(InvalidArgument, match=f"{field}: .*invalid name"):
            VM(**{field: ref})  # type: ignore[arg-type]


def test_vms_are_listed_by_project(served: Served) -> None:
    vms = [VM(served.rig.config, project=project) for project in ("lab", "lab", None)]
    try:
        assert [vm.vm_id for vm in VM.list(project="lab")] == [vm.vm_id for vm in vms[:2]]
        assert len(VM.list()) == 4
    finally:
        for vm in vms:
            vm.delete()


def test_a_name_that_is_taken_is_refused(served: Served) -> None:
    with pytest.raises(NameTaken, match="'web'"):
        VM(served.rig.config, name="web")


@pytest.mark.anyio
async def test_delete_of_a_vm_that_was_never_made_is_nothing() -> None:
    await AsyncVM().delete()


@pytest.mark.anyio
async def test_an_engine_that_was_passed_in_is_not_closed(served: Served) -> None:
    async with EngineClient() as engine:
        vm = await AsyncVM.from_id("web", engine=engine)
        await vm.close()
        assert engine._http is not None
        assert [info.name for info in await AsyncVM.list(engine=engine)] == ["web"]
    vm = await AsyncVM.from_id("web")
    await vm.close()
    assert vm._engine._http is None


@pytest.mark.anyio
async def test_waiting_for_a_vm_that_somebody_starts(served: Served) -> None:
    async with asyncio.timeout(20):
        vm = await AsyncVM.create(served.rig.config, name="soon")
        other = await AsyncVM.from_id("soon")
        starting = asyncio.create_task(vm.start())
        while (await other.refresh()).state is VMState.CREATED:
            await asyncio.sleep(0)
        await other.wait_for_ready()
        assert other.status is VMState.RUNNING
        await starting
        await vm.delete()
        await other.close()
        await vm.close()


@pytest.mark.anyio
async def test_waiting_for_a_vm_that_is_never_ready_ends(served: Served) -> None:
    served.rig.driver.behaviour = "--hang"
    vm = await AsyncVM.create(served.rig.config, name="never")
    starting = asyncio.create_task(vm.start())
    other = await AsyncVM.from_id("never")
    while (await other.refresh()).state is VMState.CREATED:
        await asyncio.sleep(0)
    with pytest.raises(BootTimeout, match=r"never was not ready within 0\.01 s"):
        await other.wait_for_ready(0.01)
    await other.delete()
    with pytest.raises(WrongState, match="superseded by a"):
        await starting
    await other.close()
    await vm.close()


def test_waiting_for_a_vm_that_nobody_starts_says_so(served: Served) -> None:
    vm = VM(served.rig.config)
    with pytest.raises(WrongState) as caught:
        vm.wait_for_ready()
    assert caught.value.hint == f"squib start {vm.name}"
    vm.delete()


def test_logs_are_those_of_the_console(served: Served) -> None:
    vm = VM.from_id("web")
    served.rig.console_log(vm.vm_id).write_bytes(b"one\n\xff\n")
    assert (vm.logs(), vm.logs(lines=1), vm.logs(lines=0)) == (b"one\n\xff\n", b"\xff\n", b"")


# --- options -------------------------------------------------------------------------------------------------------


def test_options_are_laid_over_a_config() -> None:
    config = make_config(VMConfig(vcpu_count=2, env_vars={"A": "1"}), {"vcpu_count": 3, "name": "web"})
    assert config == VMConfig(vcpu_count=3, name="web", env_vars={"A": "1"})
    assert make_config(None, {}) == VMConfig()


def test_only_what_was_chosen_is_sent() -> None:
    assert make_config(VMConfig(vcpu_count=2), {"name": "a"}).model_dump(exclude_unset=True) == {
        "vcpu_count": 2,
        "name": "a",
    }


def test_relative_paths_are_of_the_callers_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = make_config(None, {"kernel_path": "k", "rootfs_path": Path("../r")})
    assert (config.kernel_path, config.rootfs_path) == (str(tmp_path / "k"), str(tmp_path.parent / "r"))
    assert make_config(None, {"kernel_path": None}).kernel_path is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vcpu_count": 0}, "vcpu_count: .*(got 0)"),
        ({"vcpus": 2}, "vcpus: "),
        ({"kernel_path": 7}, "kernel_path: "),
        ({"env_vars": {"A": 13371337}}, "env_vars.A: "),
        ({"env_vars": "A=13371337"}, "env_vars: "),
    ],
)
def test_refused_options_are_named_and_secrets_are_not_shown(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message) as caught:
        VM(**options)  # type: ignore[arg-type]
    assert "13371337" not in str(caught.value)


# --- VM is AsyncVM, waited for -------------------------------------------------------------------------------------


TWINS: dict[object, object] = {Process: AsyncProcess}


def public(cls: type) -> dict[str, object]:
    bases = (vars(base).items() for base in reversed(cls.__mro__) if base is not object)
    return {name: value for items in bases for name, value in items if not name.startswith("_")}


def described(function: object) -> tuple[list[tuple[str, object, object]], dict[str, object]]:
    function = getattr(function, "__func__", function)
    assert callable(function)
    hints = typing.get_type_hints(function)
    parameters = [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]
    return parameters, hints


def face(value: property) -> str:
    """The type of a property, by name: that of `VM.env` is `Env`, that of `AsyncVM.env` is `AsyncEnv`."""
    assert value.fget is not None
    return str(getattr(kind := typing.get_type_hints(value.fget)["return"], "__name__", kind))


def test_both_have_the_same_methods_and_properties() -> None:
    assert public(VM).keys() == public(AsyncVM).keys() - {"create"}
    for name, value in public(VM).items():
        assert type(value) is type(public(AsyncVM)[name]), name


@pytest.mark.parametrize(("sync", "asynchronous"), [(Env, AsyncEnv)])
def test_so_have_the_parts_of_both(sync: type, asynchronous: type) -> None:
    assert public(sync).keys() == public(asynchronous).keys()
    for name, function in public(sync).items():
        assert described(function) == described(public(asynchronous)[name]), name


@pytest.mark.parametrize("name", sorted(public(VM)))
def test_a_method_has_the_same_signature_in_both(name: str) -> None:
    sync, asynchronous = public(VM)[name], public(AsyncVM)[name]
    if isinstance(sync, property) and isinstance(asynchronous, property):
        assert face(sync) in (face(asynchronous), face(asynchronous).removeprefix("Async"))
        return
    parameters, hints = described(sync)
    assert (parameters, {name: TWINS.get(hint, hint) for name, hint in hints.items()}) == described(asynchronous)
    assert inspect.iscoroutinefunction(getattr(asynchronous, "__func__", asynchronous))
    assert not inspect.iscoroutinefunction(getattr(sync, "__func__", sync))
    assert inspect.getdoc(getattr(VM, name))


def test_making_a_vm_takes_the_same_in_both() -> None:
    parameters, hints = described(VM.__init__)
    assert parameters == described(AsyncVM.__init__)[0]
    assert parameters[1:] == described(AsyncVM.create)[0][1:]
    assert typing.get_type_hints(AsyncVM.__init__) == hints


@pytest.mark.parametrize("cls", [VM, AsyncVM])
def test_every_method_is_documented(cls: type) -> None:
    assert inspect.getdoc(cls)
    undocumented = [
        name for name, value in public(cls).items() if not isinstance(value, property) and not inspect.getdoc(value)
    ]
    assert undocumented == []


@pytest.mark.anyio
async def test_the_steps_of_creating_a_vm_are_reported(served: Served) -> None:
    steps: list[str] = []

    async with EngineClient() as engine:
        vm = await engine.launch_vm(
            served.rig.config, boot_timeout_s=10, on_progress=lambda step: steps.append(step.step)
        )
        assert vm.state is VMState.RUNNING
        await engine.delete_vm(vm.vm_id)
    assert steps[-1] == "boot"


def test_a_vm_is_created_the_same_when_its_steps_are_reported(served: Served) -> None:
    vm = VM(served.rig.config, on_progress=lambda step: None)
    assert vm.status is VMState.CREATED
    vm.delete()
