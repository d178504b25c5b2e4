"""Answers of a newer engine: a client ignores the fields, values and messages that it does not know."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from websockets.asyncio.server import ServerConnection, serve

from squib.errors import NameTaken, NotFound, SquibError
from squib.models import Check, CheckStatus, FileEventType, FileType, Progress, VMConfig, VMState
from squib.sdk.aio_process import list_processes
from squib.sdk.client import EngineClient
from squib.sdk.fileclient import FileClient
from squib.sdk.terminal import open_terminal
from squib.sdk.watching import AsyncWatch
from tests.fakes.values import DIGEST, NOW, make_process, make_vm

pytestmark = pytest.mark.anyio

NEW = {"new": {"deep": [1]}}
VM = make_vm().model_dump(mode="json") | NEW
IMAGE = {"name": "base", "digest": DIGEST, "size_bytes": 1, "built_at": NOW.isoformat(), "in_use_by": []} | NEW
KERNEL = {"version": "6.12", "digest": DIGEST, "size_bytes": 1, "built_at": NOW.isoformat()} | NEW
ERROR = {"code": "name_taken", "message": "taken", "hint": "h", "detail": "d"} | NEW
FILE: dict[str, Any] = {
    "name": "a", "type": "file", "size": 1, "mode": 0o644, "uid": 0, "gid": 0, "user": "root", "group": "root",
    "mtime_ns": 0,
} | NEW  # fmt: skip


def answering(*lines: object, status: int = 200) -> EngineClient:
    """A client whose requests get these lines of JSON."""

    async def content() -> AsyncIterator[bytes]:
        for line in lines:
            yield json.dumps(line).encode() + b"\n"

    engine = EngineClient(url="http://somewhere:1")
    transport = httpx.MockTransport(lambda _: httpx.Response(status, content=content()))
    engine._http = httpx.AsyncClient(transport=transport, base_url="http://somewhere:1")
    return engine


async def test_lists() -> None:
    vms = await answering({"vms": [VM | {"state": "frozen"}]} | NEW).vms()
    assert [(vm.vm_id, vm.state) for vm in vms] == [("vm-1", VMState.UNKNOWN)]
    assert [image.name for image in await answering({"images": [IMAGE]} | NEW).images()] == ["base"]
    assert [kernel.version for kernel in await answering({"kernels": [KERNEL]} | NEW).kernels()] == ["6.12"]
    check = {"name": "kvm", "status": "odd", "detail": "", "fix": {"argv": ["true"], "as_root": True} | NEW} | NEW
    (found,) = await answering({"checks": [check]} | NEW).doctor()
    assert isinstance(found, Check) and found.status is CheckStatus.UNKNOWN and found.fix and found.fix.as_root


async def test_processes() -> None:
    process = make_process("p1").model_dump(mode="json") | NEW
    process["stdout"] |= NEW
    (found,) = await list_processes(answering({"processes": [process]} | NEW), "web")
    assert found.id == "p1"


async def test_events_of_a_build_and_of_a_create() -> None:
    steps: list[Progress] = []
    events = [NEW, {"progress": {"step": "squashfs", "unit": "leagues"} | NEW} | NEW]
    image = await answering(*events, {"image": IMAGE} | NEW).build_image("base", on_progress=steps.append)
    config = VMConfig(runtime="base")
    vm = await answering(*events, {"vm": VM} | NEW).create_vm(config, on_progress=steps.append)
    assert (image.name, vm.vm_id, [step.step for step in steps]) == ("base", "vm-1", ["squashfs", "squashfs"])
    with pytest.raises(NameTaken, match="taken"):
        await answering(*events, {"error": ERROR} | NEW).create_vm(config, on_progress=steps.append)


async def test_errors() -> None:
    with pytest.raises(NameTaken) as caught:
        await answering({"error": ERROR} | NEW, status=409).vm("web")
    assert (str(caught.value).splitlines()[0], caught.value.hint, caught.value.detail) == ("taken", "h", "d")
    with pytest.raises(SquibError, match="a reason of its own") as other:
        await answering({"error": {"code": "newer", "message": "a reason of its own"}}, status=418).vm("web")
    assert not isinstance(other.value, NotFound)


async def test_lines_of_files() -> None:
    files = FileClient(answering(FILE | {"type": "portal"}), "web")
    assert (await files.stat("/a")).type is FileType.UNKNOWN
    lines = FileClient(answering(FILE, {"end": True} | NEW), "web").lines("list", "/")
    assert [line["name"] async for line in lines] == ["a"]
    events: list[dict[str, Any]] = [
        {"type": "ready"},
        {"type": "blessed", "path": "/a"},
        {"type": "created", "path": "/b"},
        {"end": True},
    ]
    watch = AsyncWatch(FileClient(answering(*[event | NEW for event in events]), "web").lines("watch", "/"))
    assert [(event.type, event.path) async for event in watch] == [
        (FileEventType.UNKNOWN, "/a"),
        (FileEventType.CREATED, "/b"),
    ]


@pytest.fixture
async def terminal_messages(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[str, list[object]]]:
    """The URL of an engine that sends these messages when a terminal is opened."""
    messages: list[object] = []

    async def send(connection: ServerConnection) -> None:
        await connection.recv()
        for message in messages:
            await connection.send(message if isinstance(message, bytes) else json.dumps(message))
        await connection.wait_closed()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with serve(send, sock=listener):
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", messages


async def test_messages_of_a_terminal(terminal_messages: tuple[str, list[object]]) -> None:
    url, messages = terminal_messages
    messages += [
        {"type": "queued"} | NEW,
        {"type": "started", "id": "p1", "pid": 7} | NEW,
        {"type": "title", "text": "top"} | NEW,
        b"$ ",
        NEW,
        {"type": "exit", "exit_code": 3, "signal": None, "timed_out": False, "duration_s": 1.0} | NEW,
    ]
    async with EngineClient(url=url) as engine, open_terminal(engine, "web") as terminal:
        assert [data async for data in terminal.output()] == [b"$ "]
        assert (terminal.id, terminal.pid, terminal.end.exit_code) == ("p1", 7, 3)


async def test_an_error_of_a_terminal(terminal_messages: tuple[str, list[object]]) -> None:
    url, messages = terminal_messages
    messages += [{"type": "error", "error": ERROR} | NEW]
    async with EngineClient(url=url) as engine:
        with pytest.raises(NameTaken, match="taken"):
            async with open_terminal(engine, "web"):
                pytest.fail("it was opened")
