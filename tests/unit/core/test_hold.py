"""A VM that is held lives only as long as who holds it."""

import asyncio

import pytest

from squib import AsyncVM, EngineClient, NotFound
from squib.api.app import create_app
from squib.api.connections import Server
from squib.core.engine import Engine
from squib.core.lifecycle import bonds
from squib.core.lifecycle.create import create_vm
from squib.core.lifecycle.delete import delete_vm
from squib.host import sockets
from squib.models import VMState
from squib.paths import Home
from squib.sdk import client as client_module
from squib.sdk import httpclient
from tests.fakes.engine import Rig


async def serving(engine: Engine) -> tuple[Server, asyncio.Task[None]]:
    server = Server(create_app(engine), sockets.listen(engine.home.engine_socket))
    task = asyncio.create_task(server.answer())
    await server.answering.wait()
    return server, task


async def until_gone(engine: Engine) -> None:
    async with asyncio.timeout(5):
        while engine.store.list_vms():
            await asyncio.sleep(0.01)


@pytest.mark.anyio
async def test_a_holder_that_goes_away_takes_the_vm_with_it(rig: Rig) -> None:
    async with rig.running() as engine:
        server, task = await serving(engine)
        async with EngineClient(home=rig.home) as client:
            vm = await client.create_vm(rig.config)
            await client.start_vm(vm.vm_id, boot_timeout_s=5)
            async with client.bind_lifetime(vm.vm_id):
                assert (await client.vm(vm.vm_id)).pid in rig.vmms()
            await until_gone(engine)
            assert rig.vmms() == []
        server.should_exit = True
        await task


@pytest.mark.anyio
async def test_an_engine_that_ends_does_not_delete_what_is_held(rig: Rig) -> None:
    async with rig.engine() as engine:
        server, task = await serving(engine)
        client = EngineClient(home=rig.home)
        vm = await client.create_vm(rig.config)
        holder = asyncio.create_task(client.request("POST", f"/vms/{vm.vm_id}/hold"))
        async with asyncio.timeout(5):
            while vm.vm_id not in engine._deleted:
                await asyncio.sleep(0.01)
        server.config.timeout_graceful_shutdown = 0
        server.should_exit = True
        await task
        with pytest.raises(Exception):  # noqa: B017 (whatever the transport says)
            await holder
        await client.close()
        assert [record.vm_id for record in engine.store.list_vms()] == [vm.vm_id]


@pytest.mark.anyio
async def test_a_with_block_holds_its_vm_and_deletes_it(rig: Rig) -> None:
    async with rig.running() as engine:
        server, task = await serving(engine)
        async with EngineClient(home=rig.home) as client:
            async with AsyncVM(rig.config, engine=client) as vm:
                async with asyncio.timeout(5):
                    while vm.vm_id not in engine._deleted:
                        await asyncio.sleep(0.01)
            with pytest.raises(NotFound):
                await client.vm(vm.vm_id)
        server.should_exit = True
        await task


async def create_bound(engine: Engine, rig: Rig) -> str:
    record = await create_vm(engine, rig.config, start=True, bound=True, on_progress=lambda _: None)
    return record.vm_id


@pytest.mark.anyio
async def test_a_bound_vm_that_no_client_ever_holds_is_deleted(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the client is killed between the request that creates its VM and the one that holds it."""
    monkeypatch.setattr(bonds, "GRACE_S", 0.05)

    async with rig.running() as engine:
        await create_bound(engine, rig)
        await until_gone(engine)
        assert rig.vmms() == []


@pytest.mark.anyio
async def test_a_bound_vm_whose_client_and_engine_are_both_gone_is_deleted_by_the_next_engine(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig.engine() as engine:
        await create_bound(engine, rig)
    assert len(rig.vmms()) == 1
    monkeypatch.setattr(bonds, "GRACE_S", 0.05)
    async with rig.engine() as engine:
        await until_gone(engine)
        assert rig.vmms() == []


@pytest.mark.anyio
async def test_a_client_that_comes_back_to_the_next_engine_keeps_its_vm(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig.engine() as engine:
        vm_id = await create_bound(engine, rig)
    monkeypatch.setattr(bonds, "GRACE_S", 0.2)
    async with rig.engine() as engine:
        holding = asyncio.create_task(bonds.hold_vm(engine, vm_id))
        done, _ = await asyncio.wait({holding}, timeout=0.6)
        assert not done and engine.store.get_vm(vm_id).bound
        await delete_vm(engine, vm_id)
        await holding


@pytest.mark.anyio
async def test_a_vm_with_two_holders_goes_with_the_last(rig: Rig) -> None:
    async with rig.running() as engine:
        vm_id = await create_bound(engine, rig)
        holders = [asyncio.create_task(bonds.hold_vm(engine, vm_id)) for _ in range(2)]
        while engine.holders[vm_id] < 2:
            await asyncio.sleep(0)
        holders[0].cancel()
        await asyncio.wait(holders[:1])
        await bonds.client_left(engine, vm_id)
        assert engine.store.get_vm(vm_id).state is VMState.RUNNING
        holders[1].cancel()
        await asyncio.wait(holders[1:])
        await bonds.client_left(engine, vm_id)
        assert engine.store.list_vms() == []


@pytest.mark.anyio
async def test_a_holder_leaves_time_to_start_another_engine(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """`squib serve` after `squib engine stop`: a program that holds a VM is not the one that starts the engine."""
    started: list[Home] = []

    async def ensure_engine(home: Home) -> None:
        started.append(home)

    monkeypatch.setattr(httpclient, "ensure_engine", ensure_engine)
    async with rig.engine() as engine, EngineClient(home=rig.home) as client:
        server, task = await serving(engine)
        vm = await client.create_vm(rig.config)
        async with client.bind_lifetime(vm.vm_id) as binding:
            async with asyncio.timeout(5):
                while not engine.holders[vm.vm_id]:
                    await asyncio.sleep(0.01)
            server.config.timeout_graceful_shutdown = 0
            server.should_exit = True
            await task
            done, _ = await asyncio.wait({binding}, timeout=1.5)
            assert not done and started == []
            server, task = await serving(engine)
            async with asyncio.timeout(5):
                while not engine.holders[vm.vm_id]:
                    await asyncio.sleep(0.01)
            await client.delete_vm(vm.vm_id)
        server.should_exit = True
        await task
    assert started == []


@pytest.mark.anyio
async def test_a_holder_starts_an_engine_that_nobody_else_starts(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    started = asyncio.Event()

    async def ensure_engine(home: Home) -> None:
        started.set()

    monkeypatch.setattr(httpclient, "ensure_engine", ensure_engine)
    monkeypatch.setattr(client_module, "_REPLACEMENT_S", 0.2)
    async with rig.engine() as engine, EngineClient(home=rig.home) as client:
        server, task = await serving(engine)
        vm = await client.create_vm(rig.config)
        async with client.bind_lifetime(vm.vm_id):
            async with asyncio.timeout(5):
                while not engine.holders[vm.vm_id]:
                    await asyncio.sleep(0.01)
            server.config.timeout_graceful_shutdown = 0
            server.should_exit = True
            await task
            async with asyncio.timeout(5):
                await started.wait()
