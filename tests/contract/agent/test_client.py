"""`AgentClient`, which the engine uses: what it makes of the agent's answers, and of its errors."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from squib import errors
from squib.guest.agent import Identity
from squib.guest.response import Response
from squib.models import ExecRequest, PtySize
from tests.contract.agent.frames import EXIT, STARTED, STDOUT, parse
from tests.contract.agent.implementations import Implementation

pytestmark = pytest.mark.anyio


async def read(response: Response) -> bytes:
    async with response:
        return await response.read(max_bytes=1 << 22)


async def run(agent: Implementation, request: ExecRequest) -> list[tuple[int, int, bytes]]:
    return parse(await read(await agent.client.exec(request)))


async def start(agent: Implementation, request: ExecRequest) -> str:
    """Start a background command; its id."""
    async with await agent.client.exec(request) as response:
        async for chunk in response.stream():
            return str(json.loads(parse(chunk[: 13 + chunk[4]])[0][2])["id"])
    raise AssertionError("no frame")


async def test_hello_and_setup(agent: Implementation) -> None:
    hello = await agent.client.connect(timeout_s=5)
    assert all((hello.agent_version, hello.boot_id, hello.kernel))
    await agent.client.setup(Identity("vm-1", "vm-1", "0f" * 16), env=agent.env | {"A": "1"})
    await agent.client.thaw()
    (_, (_, _, output), _) = await run(agent, ExecRequest(argv=["env"]))
    assert json.loads(output)["A"] == "1"


async def test_a_command(agent: Implementation) -> None:
    frames = await run(agent, ExecRequest(argv=["echo", "a"], env={"B": "2"}, cwd="/", user="me", timeout_s=60))
    assert [kind for kind, _, _ in frames] == [STARTED, STDOUT, EXIT]
    assert frames[1][2] == b"a\n"


async def test_input_larger_than_every_window(agent: Implementation) -> None:
    data = os.urandom(3 << 20)
    response = await agent.client.exec(ExecRequest(argv=["cat"], stdin=True))
    (process,) = await agent.client.processes()
    writing = asyncio.create_task(agent.client.write_stdin(process.id, data, close=True))
    frames = parse(await read(response))
    assert await writing == len(data)
    assert b"".join(payload for kind, _, payload in frames if kind == STDOUT) == data


async def test_a_background_session(agent: Implementation) -> None:
    process = await start(agent, ExecRequest(argv=["tty"], background=True, pty=PtySize(rows=24, cols=80)))
    await agent.client.resize(process, PtySize(rows=50, cols=132))
    assert (await agent.client.process(process)).pty == PtySize(rows=50, cols=132)
    assert await agent.client.write_stdin(process, b"exit 3\r", close=False) == 7
    frames = parse(await read(await agent.client.output(process, stdout=2, stderr=0, none=False)))
    assert json.loads(frames[-1][2])["exit_code"] == 3
    (info,) = await agent.client.processes()
    assert (info.id, info.running, info.exit_code) == (process, False, 3)
    await agent.client.kill(process)
    assert await agent.client.processes() == []


async def test_the_agents_errors_are_squibs(agent: Implementation) -> None:
    client, files = agent.client, agent.client.files
    missing = str(agent.folder / "nosuch")
    (agent.folder / "full" / "x").mkdir(parents=True)
    folder = str(agent.folder / "full")
    sleeping = await start(agent, ExecRequest(argv=["sleep"], background=True))
    for call, error in (
        (client.exec(ExecRequest(argv=["nosuch"])), errors.CommandNotFound),
        (client.exec(ExecRequest(argv=[folder])), errors.NotExecutable),
        (client.exec(ExecRequest(argv=["true"], cwd=missing)), errors.BadWorkingDirectory),
        (client.exec(ExecRequest(argv=["true"], user="nosuch")), errors.NoSuchUser),
        (client.process("p99"), errors.NoSuchProcess),
        (client.kill("p99"), errors.NoSuchProcess),
        (client.signal("p99", 9), errors.NoSuchProcess),
        (client.signal(sleeping, 99), errors.InvalidArgument),
        (client.resize(sleeping, PtySize()), errors.NoTerminal),
        (client.write_stdin(sleeping, b"x", close=False), errors.StdinClosed),
        (files.stat(missing, follow=True), errors.NoSuchFile),
        (files.read(folder, offset=0, length=None), errors.NotAFile),
        (files.list("/proc/version"), errors.NotADirectory),
        (files.mkdir(folder, mode=None, user=None, parents=False), errors.FileExists),
        (files.remove(folder, recursive=False), errors.DirectoryNotEmpty),
        (files.remove("/proc/self/status", recursive=False), errors.PermissionDenied),
        (files.rename(folder, "/dev/shm/squib-contract"), errors.GuestFailed),
    ):
        with pytest.raises(error):
            await call


async def test_files(agent: Implementation) -> None:
    files, folder = agent.client.files, f"{agent.folder}/d\udcff"
    path = f"{folder}/file"
    data = os.urandom(1 << 20)
    info = await files.write(path, data, mode="640", user="me", parents=True, mtime_ns=5)
    assert (info.name, info.size, info.mode, info.mtime_ns) == ("file", len(data), 0o640, 5)
    assert await files.stat(path, follow=False) == info
    assert await read(await files.read(path, offset=10, length=1000)) == data[10:1010]
    listing = await read(await files.list(folder))
    assert [json.loads(line).get("name") for line in listing.splitlines()] == ["file", None]
    packed = await read(await files.read_tar([folder + "/."]))
    copy = f"{agent.folder}/copy"
    assert (await files.write_tar(copy, packed, user=None, keep_owner=False, create=True, parents=False))[
        "bytes"
    ] == len(data)
    assert await read(await files.read(f"{copy}/file", offset=0, length=None)) == data
    await files.rename(f"{copy}/file", f"{copy}/other")
    await files.mkdir(f"{copy}/dir", mode="700", user=None, parents=False)
    await files.remove(copy, recursive=True)
    assert not Path(copy).exists()


async def test_a_watch(agent: Implementation) -> None:
    async with await agent.client.files.watch(str(agent.folder), recursive=False) as response:
        lines = b""
        async for chunk in response.stream():
            lines += chunk
            if lines == b'{"type":"ready"}\n' or lines == b'{"type": "ready"}\n':
                await agent.client.files.mkdir(f"{agent.folder}/d", mode=None, user=None, parents=False)
            if b"created" in lines:
                break
        assert json.loads(lines.splitlines()[1]) == {"type": "created", "path": f"{agent.folder}/d"}


async def test_poweroff(agent: Implementation) -> None:
    await agent.client.poweroff(grace_s=0.05)
    async with asyncio.timeout(10):
        await agent.ended.wait()
