"""Templates: who leaves one, who is cloned from one, and that none of their faults is an error."""

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from squib.core.engine import Engine
from squib.core.lifecycle import boot
from squib.core.lifecycle.create import create_vm
from squib.core.lifecycle.delete import delete_vm
from squib.core.lifecycle.start import start_vm
from squib.core.lifecycle.stop import stop_vm
from squib.core.snapshots import manage, templates
from squib.drivers.base import Capabilities, SavedMemory
from squib.errors import BootTimeout, DiskFull, NotFound, Superseded, ToolFailed, Unsupported
from squib.guest.agent import AgentClient
from squib.host import files
from squib.models import TemplateInfo, VMState
from squib.paths import SavedPaths
from squib.store.records import VMRecord
from tests.fakes.driver import FakeDriver, FakeMachine
from tests.fakes.engine import Rig


async def create(engine: Engine, rig: Rig, *, start: bool = True, **fields: object) -> VMRecord:
    config = rig.config.model_copy(update=fields)
    vm = await create_vm(engine, config, start=start, on_progress=lambda _: None, boot_timeout_s=5)
    await settled(engine)
    return vm


async def settled(engine: Engine) -> None:
    """Wait until no template is being made."""
    await templates.finished(engine)


def kinds(rig: Rig) -> list[str]:
    """How each VM was launched."""
    return ["clone" if isinstance(spec.memory, SavedMemory) else "boot" for spec in rig.driver.launched]


@pytest.mark.anyio
async def test_the_first_vm_of_a_configuration_boots_and_the_others_are_its_clones(rig: Rig) -> None:
    async with rig.running() as engine:
        for number in range(3):
            vm = await create(engine, rig, name=f"vm-{number}")
            assert vm.state is VMState.RUNNING
        assert kinds(rig) == ["boot", "clone", "clone"]
        await create(engine, rig, mem_size_mib=256)
        await create(engine, rig, vcpu_count=2)
        await create(engine, rig, disk_size_mib=64)
        await create(engine, rig, boot_args="quiet")
        assert kinds(rig)[3:] == ["boot"] * 4
        assert len(manage.list_templates(engine)) == 5
    async with rig.running() as engine:  # the next engine has them too
        await create(engine, rig)
        assert kinds(rig)[-1] == "clone"


@pytest.mark.anyio
async def test_a_template_has_run_a_command_and_is_frozen(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []

    def note(owner: type, name: str) -> None:
        function = getattr(owner, name)

        def noted(*arguments: object, **options: object) -> object:
            steps.append(name)
            return function(*arguments, **options)

        monkeypatch.setattr(owner, name, noted)

    for name in ("setup", "exec", "freeze", "end_session"):
        note(AgentClient, name)
    note(FakeMachine, "save")
    async with rig.running() as engine:
        await create(engine, rig)
        assert steps == ["setup", "exec", "freeze", "end_session", "save", "setup"]
        await create(engine, rig)
        assert (kinds(rig), steps[6:]) == (["boot", "clone"], ["setup"])


@pytest.mark.anyio
async def test_another_kernel_or_rootfs_has_another_template(rig: Rig) -> None:
    async with rig.running() as engine:
        await create(engine, rig)
        for path in (rig.config.kernel_path, rig.config.rootfs_path):
            assert path
            os.utime(path, ns=(1, 1))
            await create(engine, rig)
        assert kinds(rig) == ["boot"] * 3


@pytest.mark.anyio
async def test_a_clone_has_the_templates_disk_and_is_the_only_one_to_write_to_it(rig: Rig) -> None:
    async with rig.running() as engine:
        await create(engine, rig)
        [template] = templates.all_templates(engine)
        vms = [await create(engine, rig) for _ in range(2)]
        for vm in vms:
            overlay = engine.home.vm(vm.vm_id).overlay
            assert overlay.read_bytes() == template.paths.overlay.read_bytes()
            overlay.write_bytes(vm.vm_id.encode())
        assert templates.find(engine, template.id)
        assert [engine.home.vm(vm.vm_id).overlay.read_text() for vm in vms] == [vm.vm_id for vm in vms]


@pytest.mark.anyio
async def test_a_vm_that_was_only_created_is_cloned_when_it_starts_and_boots_when_it_starts_again(rig: Rig) -> None:
    async with rig.running() as engine:
        await create(engine, rig)
        vm = await create(engine, rig, start=False)
        await start_vm(engine, vm.vm_id)
        await stop_vm(engine, vm.vm_id)
        await start_vm(engine, vm.vm_id)
        assert kinds(rig) == ["boot", "clone", "boot"]


@pytest.mark.anyio
async def test_a_cold_vm_boots_and_leaves_no_template(rig: Rig) -> None:
    async with rig.running() as engine:
        await create(engine, rig, cold=True)
        assert manage.list_templates(engine) == []
        await create(engine, rig)
        await create(engine, rig, cold=True)
        assert kinds(rig) == ["boot", "boot", "boot"]


@pytest.mark.anyio
async def test_a_driver_that_cannot_save_boots_every_vm(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeDriver, "capabilities", Capabilities(pause=True))
    async with rig.running() as engine:
        for _ in range(2):
            await create(engine, rig)
        assert kinds(rig) == ["boot", "boot"]
        with pytest.raises(Unsupported, match="fake cannot save"):
            await manage.build_template(engine, rig.config, on_progress=lambda _: None)


@pytest.mark.anyio
async def test_vms_that_are_created_at_once_make_one_template(rig: Rig) -> None:
    async with rig.running() as engine:
        vms = await asyncio.gather(*(create(engine, rig) for _ in range(12)))
        assert {vm.state for vm in vms} == {VMState.RUNNING}
        slots = max(2, os.cpu_count() or 1)
        assert 1 <= kinds(rig).count("boot") <= slots  # those that wait for a slot are clones
        assert len(manage.list_templates(engine)) == 1
        assert list(rig.home.building.iterdir()) == []


@pytest.mark.parametrize("name", ["memory", "devices", "overlay.ext4", "manifest.json"])
@pytest.mark.parametrize("damage", ["changed", "gone"])
@pytest.mark.anyio
async def test_a_damaged_template_is_removed_and_the_vm_boots(rig: Rig, name: str, damage: str) -> None:
    async with rig.running() as engine:
        await create(engine, rig)
        [template] = templates.all_templates(engine)
        path = template.paths.root / name
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes(b"x")
        assert (await create(engine, rig)).state is VMState.RUNNING
        assert kinds(rig) == ["boot", "boot"]
        await create(engine, rig)  # the second VM has left a new one
        assert kinds(rig)[2:] == ["clone"]


@pytest.mark.parametrize("behaviour", ["--die", "--panic", "--panic-when-set-up", "--hang"])
@pytest.mark.anyio
async def test_a_template_whose_clone_does_not_run_is_removed_and_the_vm_boots(
    rig: Rig, behaviour: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    async with rig.running() as engine:
        await create(engine, rig)
        rig.driver.first = [behaviour]
        monkeypatch.setattr(boot, "_FAIR_CLONE_TIMEOUT_S", 0.5)
        vm = await create_vm(engine, rig.config, start=True, on_progress=lambda _: None, boot_timeout_s=6)
        assert vm.state is VMState.RUNNING
        assert kinds(rig) == ["boot", "clone", "boot"]
        assert f"VM {vm.vm_id} could not be cloned from template" in caplog.text
        await settled(engine)
        assert len(manage.list_templates(engine)) == 1  # another one
        assert engine.home.vm(vm.vm_id).overlay.exists()
        assert len(rig.vmms()) == 2


@pytest.mark.parametrize("error", [DiskFull("the disk is full"), ToolFailed("QEMU does not answer"), OSError("odd")])
@pytest.mark.parametrize("step", ["pause", "save"])
@pytest.mark.anyio
async def test_a_vm_that_cannot_be_saved_runs_without_leaving_a_template(
    rig: Rig, step: str, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails(self: FakeMachine, *paths: Path, **options: int) -> None:
        raise error

    async with rig.running() as engine:
        with monkeypatch.context() as patch:
            patch.setattr(FakeMachine, step, fails)
            vm = await create(engine, rig)
        assert vm.state is VMState.RUNNING
        assert not await engine.running[vm.vm_id].machine.is_paused()
        assert f"no template could be made of VM {vm.vm_id}: {error}" in caplog.text
        assert (manage.list_templates(engine), list(rig.home.building.iterdir())) == ([], [])
        await create(engine, rig)
        assert len(manage.list_templates(engine)) == 1


@pytest.mark.anyio
async def test_a_create_that_is_cancelled_while_its_vm_is_saved_leaves_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving = asyncio.Event()

    async def hangs(self: FakeMachine, *paths: Path, **options: int) -> None:
        saving.set()
        await asyncio.Event().wait()

    async with rig.running() as engine:
        monkeypatch.setattr(FakeMachine, "save", hangs)
        creating = asyncio.create_task(create(engine, rig, vm_id="first"))
        await saving.wait()
        await delete_vm(engine, "first")
        with pytest.raises(Superseded):
            await creating
        await settled(engine)
        assert (engine.store.leases(), rig.vmms()) == ([], [])
        assert (list(rig.home.vms.iterdir()), list(rig.home.building.iterdir())) == ([], [])
        assert list(rig.home.templates.iterdir()) == []


@pytest.mark.anyio
async def test_a_template_can_be_built_in_advance_listed_and_removed(rig: Rig) -> None:
    async with rig.running() as engine:
        built = await manage.build_template(engine, rig.config, on_progress=lambda _: None)
        assert isinstance(built, TemplateInfo)
        assert engine.store.list_vms() == []
        assert manage.list_templates(engine) == [built]
        assert (built.driver, built.runtime, built.vcpu_count) == ("fake", "", 1)
        again = await manage.build_template(engine, rig.config, on_progress=lambda _: None)
        assert again.template_id == built.template_id
        vm = await create(engine, rig)
        assert kinds(rig) == ["boot", "clone", "clone"]
        manage.remove_template(engine, built.template_id)
        assert engine.running[vm.vm_id] and manage.list_templates(engine) == []
        with pytest.raises(NotFound, match=built.template_id):
            manage.remove_template(engine, built.template_id)


@pytest.mark.anyio
async def test_old_and_large_templates_are_pruned(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig.running() as engine:
        made = []
        for memory_mib in (128, 256, 512):
            await create(engine, rig, mem_size_mib=memory_mib)
            [new] = [one for one in templates.all_templates(engine) if one.id not in made]
            made.append(new.id)
        by_id = {template.id: template.paths for template in templates.all_templates(engine)}
        first, second = by_id[made[0]], by_id[made[1]]
        os.utime(first.manifest, (1e9, 1e9))
        assert templates.prune(engine) == [made[0]]
        assert not first.root.exists()
        os.utime(second.manifest, (1e9, 1e9))
        await create(engine, rig, mem_size_mib=256)  # it is used, so it is not old
        assert kinds(rig)[-1] == "clone"
        assert templates.prune(engine) == []
        newest, other = templates.all_templates(engine)
        monkeypatch.setattr(templates, "MAX_TOTAL_BYTES", newest.size_bytes)
        assert templates.prune(engine) == [other.id]
        assert templates.prune(engine, everything=True) == [newest.id]
    assert list(rig.home.templates.iterdir()) == []


@pytest.mark.anyio
async def test_the_rest_of_a_template_is_no_template(rig: Rig) -> None:
    async with rig.running() as engine:
        rest = SavedPaths(engine.home.templates / "0123456789abcdef.00000000")
        rest.root.mkdir()
        rest.memory.touch()
        (engine.home.templates / "file").touch()
        assert manage.list_templates(engine) == []
        assert list(engine.home.templates.iterdir()) == []


@pytest.fixture(autouse=True)
def small_vms(rig: Rig) -> None:
    rig.config = rig.config.model_copy(update={"mem_size_mib": 128, "disk_size_mib": 16})


@pytest.mark.anyio
async def test_a_short_timeout_is_no_reason_to_remove_a_template(rig: Rig) -> None:
    async with rig.running() as engine:
        await create(engine, rig)
        [template] = manage.list_templates(engine)
        rig.driver.first = ["--hang", "--hang"]
        with pytest.raises(BootTimeout):
            await create_vm(engine, rig.config, start=True, on_progress=lambda _: None, boot_timeout_s=0.4)
        assert [found.template_id for found in manage.list_templates(engine)] == [template.template_id]


@pytest.mark.anyio
async def test_a_template_that_is_removed_while_a_clone_starts_is_no_error(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_disk = templates.replace_disk

    async with rig.running() as engine:
        await create(engine, rig)

        def remove_first(source: Path, overlay: Path) -> None:
            templates.prune(engine, everything=True)
            replace_disk(source, overlay)

        monkeypatch.setattr(templates, "replace_disk", remove_first)
        vm = await create(engine, rig)
        assert vm.state is VMState.RUNNING and kinds(rig) == ["boot", "boot"]


@pytest.mark.anyio
@pytest.mark.parametrize("when", ["copied", "launched"])
async def test_a_vm_keeps_an_empty_disk_if_its_clone_fails(
    rig: Rig, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig.running() as engine:
        await create(engine, rig)
        vm = await create(engine, rig, start=False)
        overlay = engine.home.vm(vm.vm_id).overlay
        empty = overlay.read_bytes()
        if when == "copied":
            monkeypatch.setattr(files, "sparse_copy", fails_with(DiskFull("the disk is full"), files.sparse_copy))
        else:
            rig.driver.first = ["--die"]
        await start_vm(engine, vm.vm_id)
        assert overlay.read_bytes() == empty
        assert sorted(path.name for path in overlay.parent.iterdir() if "overlay" in path.name) == [overlay.name]


def fails_with(error: Exception, function: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
    """A copy that fails if it copies a template's disk."""

    def copy(source: Path, target: Path) -> None:
        if "/templates/" in str(source):
            raise error
        function(source, target)

    return copy


@pytest.mark.anyio
async def test_no_template_is_made_on_a_disk_that_it_could_fill(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "SPARE_BYTES", 1 << 60)
    async with rig.running() as engine:
        await create(engine, rig)
        assert manage.list_templates(engine) == []
        with pytest.raises(DiskFull):
            await manage.build_template(engine, rig.config, on_progress=lambda _: None)
        assert len(engine.store.list_vms()) == 1


@pytest.mark.anyio
@pytest.mark.parametrize("step", ["pause", "save"])
async def test_a_vmm_that_hangs_while_it_is_saved_delays_its_vm_for_a_while(
    rig: Rig, step: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = getattr(FakeMachine, step)

    async def hangs(self: FakeMachine, *paths: Path, **options: int) -> None:
        await original(self, *paths, **options)  # the VM is paused, but the answer is lost
        await asyncio.Event().wait()

    monkeypatch.setattr(FakeMachine, step, hangs)
    async with rig.running() as engine:
        vm = await create_vm(engine, rig.config, start=True, on_progress=lambda _: None, boot_timeout_s=2)
        assert vm.state is VMState.RUNNING
        assert not await engine.running[vm.vm_id].machine.is_paused()
        assert "no template is made" in caplog.text
        assert list(rig.home.building.iterdir()) == []


STEPS = {
    "save": (FakeMachine, "save"),
    "copy the disk": (files, "sparse_copy"),
    "flush": (files, "sync"),
    "describe": (files, "write_atomic"),
    "name": (files, "sync_directory"),
}


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_kill_9_of_the_engine_while_a_template_is_made(rig: Rig, step: str, after: bool) -> None:
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(make_and_die(rig, *STEPS[step], after=after))
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    asyncio.run(nothing_half_made_is_left(rig))


async def make_and_die(rig: Rig, owner: object, name: str, *, after: bool) -> None:
    """Make a template, and die when the function ``name`` is called, or when it has done its work."""
    original = getattr(owner, name)

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    async def coroutine(*arguments: object, **options: object) -> None:
        if after:
            await original(*arguments, **options)
        die()

    def function(*arguments: object, **options: object) -> None:
        if not any(part in str(arguments) for part in ("/building/template.", "/cache/templates")):
            return original(*arguments, **options)  # another file
        if after:
            original(*arguments, **options)
        return die()

    setattr(owner, name, coroutine if asyncio.iscoroutinefunction(original) else function)
    async with rig.engine() as engine:
        await create(engine, rig)


async def nothing_half_made_is_left(rig: Rig) -> None:
    async with rig.engine() as engine:
        assert list(rig.home.building.iterdir()) == []
        made = manage.list_templates(engine)
        for vm in engine.store.list_vms():
            await delete_vm(engine, vm.vm_id)
        await create(engine, rig)
        await create(engine, rig)
        assert kinds(rig) == (["clone", "clone"] if made else ["boot", "clone"])
        for vm in engine.store.list_vms():
            await delete_vm(engine, vm.vm_id)
        assert (rig.vmms(), engine.store.leases(), len(manage.list_templates(engine))) == ([], [], 1)
