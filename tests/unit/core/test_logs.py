"""Consoles and the engine's log: reading and following them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from squib.core.engine import Engine
from squib.core.guestio import logs
from squib.core.lifecycle.create import create_vm
from squib.core.lifecycle.delete import delete_vm
from squib.core.lifecycle.stop import stop_vm
from squib.errors import NotFound
from squib.host.logs import rotated
from tests.fakes.engine import Rig

pytestmark = pytest.mark.anyio

HOSTILE = b"\x1b[2J\x00\xff\r\nend"


async def make(engine: Engine, rig: Rig, *, start: bool) -> Path:
    vm = await create_vm(engine, rig.config.model_copy(update={"name": "web"}), start=start, on_progress=lambda _: None)
    return rig.console_log(vm.vm_id)


async def read(chunks: AsyncIterator[bytes], until: bytes) -> bytes:
    """What comes, up to and with ``until``."""
    data = b""
    async with asyncio.timeout(5):
        async for chunk in chunks:
            data += chunk
            if data.endswith(until):
                break
    return data


async def test_a_console_is_told_as_it_was_written(rig: Rig) -> None:
    async with asyncio.timeout(30), rig.engine() as engine:
        path = await make(engine, rig, start=False)
        assert logs.console(engine, "web", lines=None) == b""
        rotated(path).write_bytes(b"one\ntwo\n")
        path.write_bytes(HOSTILE)
        assert logs.console(engine, "web", lines=None) == b"one\ntwo\n" + HOSTILE
        assert logs.console(engine, "web", lines=1) == b"end"
        assert logs.console(engine, "web", lines=0) == b""


async def test_a_vm_that_is_not_there_has_no_console(rig: Rig) -> None:
    async with asyncio.timeout(30), rig.engine() as engine:
        with pytest.raises(NotFound):
            logs.console(engine, "nope", lines=None)
        with pytest.raises(NotFound):
            logs.follow_console(engine, "nope", lines=None)


async def test_following_goes_on_through_a_rotation_and_ends_with_the_vm(rig: Rig) -> None:
    async with asyncio.timeout(30), rig.engine() as engine:
        path = await make(engine, rig, start=True)
        path.write_bytes(b"one\ntwo\n")
        chunks = logs.follow_console(engine, "web", lines=1)
        assert await read(chunks, b"two\n") == b"two\n"
        with path.open("ab") as file:
            file.write(b"three\n")
        path.replace(rotated(path))
        path.write_bytes(b"four\n")
        assert await read(logs.follow_console(engine, "web", lines=None), b"four\n") == b"one\ntwo\nthree\nfour\n"


async def test_one_follower_sees_everything(rig: Rig) -> None:
    async with asyncio.timeout(30), rig.engine() as engine:
        path = await make(engine, rig, start=True)
        path.write_bytes(b"one\n")
        seen = bytearray()

        async def follow() -> None:
            async for chunk in logs.follow_console(engine, "web", lines=None):
                seen.extend(chunk)

        follower = asyncio.create_task(follow())
        async with asyncio.timeout(5):
            while seen != b"one\n":
                await asyncio.sleep(0.01)
            with path.open("ab") as file:
                file.write(b"two\n")
            path.replace(rotated(path))
            path.write_bytes(b"three\n")
            while not seen.endswith(b"three\n"):
                await asyncio.sleep(0.01)
            await stop_vm(engine, "web", timeout_s=0)
            await follower
        assert seen == b"one\ntwo\nthree\n"


async def test_following_a_vm_that_is_deleted_ends(rig: Rig) -> None:
    async with asyncio.timeout(30), rig.engine() as engine:
        path = await make(engine, rig, start=True)
        path.write_bytes(b"last words")
        chunks = logs.follow_console(engine, "web", lines=None)
        assert await anext(chunks) == b"last words"
        await delete_vm(engine, "web")
        async with asyncio.timeout(5):
            assert [chunk async for chunk in chunks] == []


async def test_following_a_vm_that_does_not_run_ends_at_once(rig: Rig) -> None:
    async with asyncio.timeout(30), rig.engine() as engine:
        await make(engine, rig, start=False)
        async with asyncio.timeout(1):
            assert [chunk async for chunk in logs.follow_console(engine, "web", lines=None)] == []


async def test_the_api_tells_logs(rig: Rig) -> None:
    async with rig.http() as (engine, http):
        path = await make(engine, rig, start=False)
        path.write_bytes(b"one\n" + HOSTILE)
        engine.home.engine_log.write_bytes(b"a\nb\n")
        assert (await http.get("/v1/vms/web/logs?lines=1")).content == b"end"
        answer = await http.get("/v1/vms/web/logs?follow=true")
        assert (answer.content, answer.headers["content-type"].partition(";")[0]) == (
            b"one\n" + HOSTILE,
            "text/plain",
        )
        assert (await http.get("/v1/engine/logs?lines=1")).content == b"b\n"
        assert (await http.get("/v1/vms/nope/logs?follow=true")).json()["error"]["code"] == "not_found"
        assert (await http.get("/v1/vms/web/logs?lines=-1")).json()["error"]["code"] == "invalid_argument"
