"""The Firecracker driver on a stub that fails at every call: each fault is a clear error, and nothing is left."""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from squib.drivers.base import ExitKind, MachineSpec, SavedMemory
from squib.drivers.firecracker import api, driver, plan
from squib.drivers.firecracker.programs import Programs
from squib.drivers.firecracker.requests import NO_MEMORY_FILE, SAVED_DEVICES, START, Request, configuration
from squib.errors import BootFailed, SquibError, ToolFailed, Unsupported
from tests.contract.drivers.implementations import WORKS, Subject, agent_of, subject
from tests.fakes.firecracker import install, spec
from tests.fakes.firecracker.install import Stub

pytestmark = pytest.mark.anyio

CALLS = [
    "PUT /metrics",
    "PUT /machine-config",
    "PUT /boot-source",
    "PUT /drives/base",
    "PUT /drives/overlay",
    "PUT /vsock",
    "PUT /entropy",
    "PUT /balloon",
    "PUT /actions InstanceStart",
]
Fault = tuple[str, dict[str, object], str]
FAULTS: list[Fault] = [
    ("refuse", {}, "failed at .*closed the connection|reset|broken"),
    ("answer", {"status": 400, "message": "no \x1b[1m such"}, r"refused .*\(status 400\): no.* such"),
    ("hang", {}, "did not respond to .* within 1 s"),
    ("die", {"status": 3}, "before the guest ran"),
    ("die", {"signal": 9}, "before the guest ran"),
]


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Subject]:
    async with subject("stub", tmp_path) as made:
        yield made


@pytest.fixture
async def stub(machine: Subject, tmp_path: Path) -> Stub:
    return Stub(tmp_path / "files")


@pytest.fixture
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "TIMEOUT_S", 1.0)


async def test_these_are_all_calls_of_a_launch(machine: Subject) -> None:
    files = plan.guest_files(machine.spec)
    made = [f"{request.method} {request.path}" for request in configuration(machine.spec, files, pci=True)]
    assert [*made, f"{START.method} {START.path} InstanceStart"] == CALLS


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("fault", FAULTS, ids=["refuse", "400", "hang", "exit", "killed"])
@pytest.mark.parametrize("call", CALLS)
async def test_a_fault_at_any_call_is_a_failed_boot(
    machine: Subject, stub: Stub, monkeypatch: pytest.MonkeyPatch, call: str, fault: Fault, when: str
) -> None:
    do, details, text = fault
    stub.fail(call, do, when=when, **details)
    with monkeypatch.context() as changed, pytest.raises(BootFailed, match=text) as raised:
        if do == "hang":
            changed.setattr(api, "TIMEOUT_S", 1.0)
        async with asyncio.timeout(30):
            await machine.launch()
    assert "\x1b" not in raised.value.message + raised.value.detail
    assert (machine.processes(), machine.sockets()) == ([], [])
    stub.recover()
    vmm = await machine.launch()  # and the next launch is as if nothing had happened
    async with agent_of(vmm):
        pass
    await vmm.kill()


@pytest.mark.parametrize(
    ("do", "details", "text"),
    [
        ("refuse", {"message": "no kvm"}, "before the guest ran"),
        ("die", {"signal": 9}, "before the guest ran"),
        ("hang", {}, "did not open its API within 0.3 s"),
    ],
)
async def test_a_firecracker_that_does_not_start_is_a_failed_boot(
    machine: Subject, stub: Stub, monkeypatch: pytest.MonkeyPatch, do: str, details: dict[str, object], text: str
) -> None:
    monkeypatch.setattr(driver, "_API_TIMEOUT_S", 0.3)
    stub.fail("launch", do, **details)
    with pytest.raises(BootFailed, match=text):
        await machine.launch()
    assert (machine.processes(), machine.sockets()) == ([], [])


@pytest.mark.parametrize(("do", "details"), [(do, details) for do, details, _ in FAULTS[:3]])
@pytest.mark.parametrize("call", ["PATCH /vm Paused", "PATCH /vm Resumed", "GET /"])
async def test_a_running_firecracker_that_does_not_obey_is_an_error_and_can_be_killed(
    machine: Subject, stub: Stub, short_timeouts: None, call: str, do: str, details: dict[str, object]
) -> None:
    vmm = await machine.launch()
    verbs = {"PATCH /vm Paused": vmm.pause, "PATCH /vm Resumed": vmm.resume, "GET /": vmm.is_paused}
    if call == "PATCH /vm Resumed":
        await vmm.pause()
    stub.fail(call, do, **details)
    with pytest.raises(ToolFailed, match="Firecracker"):
        await verbs[call]()
    if do != "hang":  # then its only thread for requests hangs
        stub.recover()
        await vmm.pause()  # over a new connection, if the old one is of no use
        assert await vmm.is_paused()
    await vmm.kill()


async def test_a_firecracker_whose_api_hangs_is_adopted_and_can_be_killed(
    machine: Subject, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await machine.launch()
    await first.detach()
    monkeypatch.setattr(driver, "_ADOPT_TIMEOUT_S", 0.2)
    stub.fail("GET /", "hang")
    second = await machine.adopt()
    assert second is not None
    await second.kill()


async def test_a_firecracker_that_never_ran_its_guest_is_not_adopted(
    machine: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured = asyncio.Event()
    request = api.ApiClient.request

    async def stop_before_the_start(self: api.ApiClient, asked: Request, **options: float) -> object:
        if asked == START:
            configured.set()
            await asyncio.Event().wait()
        return await request(self, asked, **options)

    monkeypatch.setattr(api.ApiClient, "request", stop_before_the_start)
    launching = asyncio.create_task(machine.launch())
    await configured.wait()
    assert machine.processes()  # as an engine that is killed now would leave it
    assert await machine.adopt() is None
    assert machine.processes() == []
    launching.cancel()
    await asyncio.wait({launching})


async def test_a_guest_that_halts_without_the_agent_has_powered_off(machine: Subject) -> None:
    vmm = await machine.launch()
    async with agent_of(vmm):
        pass  # what the guest prints while it boots is out
    for part in (b"a log says: reboot: System halted\n[    9.25013", b"7] reboot: System halted\r\n"):
        assert vmm.pid in machine.processes()
        with (machine.folder / "console.pipe").open("ab", buffering=0) as console:
            console.write(part)
    async with asyncio.timeout(10):
        assert (await vmm.wait()).kind is ExitKind.POWERED_OFF


async def test_a_guest_that_halted_while_no_engine_looked_has_powered_off(machine: Subject) -> None:
    first = await machine.launch()
    async with agent_of(first):
        pass  # what the guest prints while it boots is out
    await first.detach()
    with machine.driver.console_log(machine.folder).open("ab") as console:
        console.write(b"[    9.250137] reboot: Power down\r\n")
    second = await machine.adopt()
    assert second is not None
    async with asyncio.timeout(10):
        assert (await second.wait()).kind is ExitKind.POWERED_OFF


async def test_a_firecracker_that_cannot_be_watched_is_ended(machine: Subject) -> None:
    first = await machine.launch()
    await first.detach()
    (machine.folder / "log.pipe").unlink()
    assert await machine.adopt() is None
    assert (machine.processes(), machine.sockets()) == ([], [])


@dataclass
class Saved:
    """A machine of the stub that was saved, in a directory."""

    spec: MachineSpec
    memory: SavedMemory


@pytest.fixture
async def saved(machine: Subject, tmp_path: Path) -> Saved:
    vmm = await machine.launch()
    await vmm.pause()
    memory = SavedMemory(machine.spec.memory.size_mib, tmp_path / "memory", tmp_path / "devices")
    await (await vmm.save(memory.memory, memory.devices, size_mib=memory.size_mib))()
    await vmm.kill()
    return Saved(replace(machine.spec, memory=memory), memory)


async def test_only_what_was_written_of_a_memory_is_saved(saved: Saved) -> None:
    found = saved.memory.memory.stat()
    assert found.st_size == saved.memory.size_mib << 20
    assert found.st_blocks * 512 < 1 << 20


@pytest.mark.parametrize(("do", "details", "text"), FAULTS, ids=["refuse", "400", "hang", "exit", "killed"])
@pytest.mark.parametrize("call", ["PUT /metrics", "PUT /snapshot/load"])
async def test_a_fault_while_a_saved_machine_is_loaded_is_a_failed_boot(
    machine: Subject,
    saved: Saved,
    stub: Stub,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    do: str,
    details: dict[str, object],
    text: str,
) -> None:
    stub.fail(call, do, **details)
    with monkeypatch.context() as changed, pytest.raises(BootFailed, match=text):
        if do == "hang":
            changed.setattr(api, "TIMEOUT_S", 1.0)
        await machine.launch(saved.spec)
    assert (machine.processes(), machine.sockets()) == ([], [])


@pytest.mark.parametrize("name", ["memory", "devices"])
async def test_a_damaged_saved_state_is_a_failed_boot(machine: Subject, saved: Saved, name: str) -> None:
    with (saved.memory.memory.parent / name).open("r+b") as file:
        file.write(b"damaged")
    with pytest.raises(BootFailed, match="before the guest ran") as raised:
        await machine.launch(saved.spec)
    assert "Failed to restore from snapshot" in raised.value.detail
    assert (machine.processes(), machine.sockets()) == ([], [])


async def test_a_saved_state_that_is_gone_is_an_error(machine: Subject, saved: Saved) -> None:
    saved.memory.devices.unlink()
    with pytest.raises(SquibError):
        await machine.launch(saved.spec)
    assert (machine.processes(), machine.sockets()) == ([], [])


@pytest.mark.parametrize(("do", "details"), [("answer", {"status": 400, "message": "no"}), ("refuse", {})])
async def test_a_machine_goes_on_after_a_failed_save(
    machine: Subject, stub: Stub, tmp_path: Path, do: str, details: dict[str, object]
) -> None:
    vmm = await machine.launch()
    await vmm.pause()
    stub.fail("PUT /snapshot/create", do, times=1, **details)
    with pytest.raises(ToolFailed):
        await vmm.save(tmp_path / "memory", tmp_path / "devices", size_mib=128)
    await vmm.resume()
    async with agent_of(vmm):
        pass
    await vmm.kill()


@pytest.mark.parametrize("kind", ["nothing", "empty", "link", "fifo", "folder", "large"])
async def test_what_a_hostile_firecracker_leaves_as_its_devices_is_not_read(
    machine: Subject, stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("squib.drivers.firecracker.machine._MAX_DEVICES_BYTES", 1000)
    vmm = await machine.launch()
    await vmm.pause()
    stub.fail("PUT /snapshot/create", "answer", status=400, message=NO_MEMORY_FILE)  # it writes none itself
    left = machine.folder / SAVED_DEVICES
    match kind:
        case "empty":
            left.touch()
        case "link":
            left.symlink_to(machine.spec.kernel)
        case "fifo":
            os.mkfifo(left)
        case "folder":
            left.mkdir()
        case "large":
            left.write_bytes(bytes(1001))
    async with asyncio.timeout(20):
        with pytest.raises(ToolFailed, match="devices"):
            await vmm.save(tmp_path / "memory", tmp_path / "devices", size_mib=128)
    assert not (tmp_path / "devices").exists()
    await vmm.kill()


async def test_connections_end_when_a_machine_is_saved_and_new_ones_wait_until_it_goes_on(
    machine: Subject, tmp_path: Path
) -> None:
    vmm = await machine.launch()
    async with agent_of(vmm) as agent:
        await vmm.pause()
        await vmm.save(tmp_path / "memory", tmp_path / "devices", size_mib=128)
        connecting = asyncio.create_task(vmm.connect_agent())
        done, _ = await asyncio.wait({connecting}, timeout=0.2)
        assert not done
        await vmm.resume()
        (await connecting).close()
        await agent.thaw()  # over a new connection
    await vmm.kill()


async def test_a_guest_that_goes_on_and_misses_a_connection_gets_a_new_one(
    machine: Subject, saved: Saved, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("squib.drivers.firecracker.machine._ANSWER_S", 0.1)
    vmm = await machine.launch(saved.spec)
    await vmm.resume()
    stub.fail("vsock", "hang", times=2)
    async with asyncio.timeout(20), agent_of(vmm):
        pass
    await vmm.kill()


async def test_no_connection_gets_the_number_of_one_that_the_guest_may_still_have(
    machine: Subject, stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("squib.drivers.firecracker.machine._ANSWER_S", 60.0)  # a request that is lost stays lost
    stub.configure(version="1.10.1")
    programs = Programs(stub.firecracker, stub.jailer, (1, 10, 1))
    machine.driver = driver.FirecrackerDriver(lambda: programs, WORKS, jailer_lacks="")
    made = machine.spec
    for generation in range(4):
        vmm = await machine.launch(made)
        await vmm.resume()
        async with asyncio.timeout(20), agent_of(vmm):
            await vmm.pause()
            paths = (tmp_path / f"{name}-{generation}" for name in ("memory", "devices"))
            memory = SavedMemory(made.memory.size_mib, *paths)
            await (await vmm.save(memory.memory, memory.devices, size_mib=memory.size_mib))()
        await vmm.kill()
        made = replace(made, memory=memory)


async def test_a_version_that_loses_its_guest_at_a_resume_is_not_saved(machine: Subject, tmp_path: Path) -> None:
    for version, able in (((1, 16, 0), False), ((1, 16, 1), False), ((1, 15, 1), True)):
        programs = Programs(tmp_path / "firecracker", tmp_path / "jailer", version)
        found = driver.FirecrackerDriver(lambda programs=programs: programs, WORKS, jailer_lacks="").capabilities
        assert (found.pause, found.save) == (able, able)
        assert ("after a resume" in found.no_save) != able


async def test_a_version_that_loses_its_guest_at_a_resume_is_not_paused(machine: Subject, stub: Stub) -> None:
    stub.configure(version="1.16.1")
    vmm = await machine.launch()
    with pytest.raises(Unsupported, match=r"Firecracker 1\.16\.1 cannot pause a VM: after a resume"):
        await vmm.pause()
    assert not await vmm.is_paused()
    async with agent_of(vmm):
        pass
    await vmm.kill()


async def test_an_agent_that_is_not_there_yet_is_waited_for(machine: Subject, stub: Stub) -> None:
    stub.fail("vsock", "refuse", times=3)
    vmm = await machine.launch()
    async with agent_of(vmm):
        pass
    await vmm.kill()


async def test_a_machine_that_has_ended_has_no_agent(machine: Subject) -> None:
    vmm = await machine.launch()
    await vmm.kill()
    with pytest.raises((SquibError, OSError)):
        await vmm.connect_agent()


async def test_the_guests_restart_is_told_from_its_power_off(machine: Subject) -> None:
    vmm = await machine.launch()
    async with agent_of(vmm) as agent:
        await agent.poweroff(grace_s=0.1)
        assert (await vmm.wait()).kind is ExitKind.POWERED_OFF


async def test_a_kernel_that_is_no_elf_is_refused(machine: Subject, tmp_path: Path) -> None:
    kernel = tmp_path / "bzImage"
    kernel.write_bytes(b"MZ")
    with pytest.raises(Unsupported, match="boots only uncompressed ELF kernels") as raised:
        await machine.launch(replace(machine.spec, kernel=kernel))
    assert "--driver qemu" in raised.value.hint


async def test_every_request_is_one_that_firecrackers_own_description_allows(
    machine: Subject, stub: Stub, saved: Saved, tmp_path: Path
) -> None:
    spec.load()  # or skip the test
    stub.configure(record=True)
    made = []
    for number, machines_spec in enumerate((machine.spec, saved.spec)):
        vmm = await machine.launch(machines_spec)
        await vmm.pause()
        assert await vmm.is_paused()
        await vmm.save(tmp_path / f"memory-{number}", tmp_path / f"devices-{number}", size_mib=128)
        await vmm.resume()
        made += install.requests(machine.folder / "api.sock")
        await vmm.kill()
    calls = {f"{request['method']} {request['path']}" for request in made}
    assert calls >= {"PATCH /vm", "GET /", "PUT /actions", "PUT /snapshot/create", "PUT /snapshot/load"}
    for request in made:
        spec.validate(request["method"], request["path"], request["body"])
