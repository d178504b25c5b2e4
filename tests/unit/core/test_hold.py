"""A VM that is held lives only as long as who holds it."""

import asyncio

import pytest

from squib import AsyncVM, EngineClient, NotFound
from squib.api.app import create_app
from squib.api.server import _Server
from squib.core.engine import Engine
from squib.host import sockets
from tests.fakes.engine import Rig


async def serving(engine: Engine) -> tuple[_Server, asyncio.Task[None]]:
    server = _Server(create_app(engine), sockets.listen(engine.home.engine_socket))
    task = asyncio.create_task(server.answer())
    await server.answering.wait()
    return server, task


async def until_gone(engine: Engine) -> None:
    async with asyncio.timeout(5):
        while engine.store.list_vms():
            await asyncio.sleep(0.01)


def test_a_holder_that_goes_away_takes_the_vm_with_it(rig: Rig) -> None:
    async def test(engine: Engine) -> None:
        server, task = await serving(engine)
        async with EngineClient(home=rig.home) as client:
            vm = await client.create_vm(rig.config)
            await client.start_vm(vm.vm_id, boot_timeout_s=5)
            async with client.holding(vm.vm_id):
                assert (await client.vm(vm.vm_id)).pid in rig.vmms()
            await until_gone(engine)
            assert rig.vmms() == []
        server.should_exit = True
        await task

    rig.run(test)


def test_an_engine_that_ends_does_not_delete_what_is_held(rig: Rig) -> None:
    async def main() -> None:
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

    asyncio.run(main())


def test_a_with_block_holds_its_vm_and_deletes_it(rig: Rig) -> None:
    async def test(engine: Engine) -> None:
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

    rig.run(test)
