"""What a guest may lack: entropy, a shell, room on its disk. The real agent meets these in a namespace of its own."""

import asyncio
import base64
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from squib.guest.agent import AGENT_BINARY
from tests.contract.agent.http2 import RawSession
from tests.contract.agent.implementations import fake_agent, real_agent
from tests.contract.agent.test_files import at

pytestmark = pytest.mark.anyio
UNSHARE = ["unshare", "--mount", *(["--user", "--map-root-user"] if os.getuid() else [])]
ENTROPY = base64.b64encode(bytes(32)).decode()
ENTER = 'mount -t tmpfs -o size=256k tmpfs "$4/disk" && exec chroot "$4" /agent "$2" /agent.sock /'


@pytest.fixture
async def bare(tmp_path: Path) -> AsyncIterator[RawSession]:
    """A session with a real agent whose root has no shell, and 256 KiB in /disk."""
    environment = os.environ | {"PATH": os.defpath + ":/usr/sbin:/sbin"}
    probe = await asyncio.create_subprocess_exec(*UNSHARE, "true", stderr=subprocess.DEVNULL, env=environment)
    if await probe.wait():
        pytest.skip("this user may not make namespaces, which an empty root and a small disk need")
    (tmp_path / "disk").mkdir()
    shutil.copy(AGENT_BINARY, tmp_path / "agent")
    async with real_agent(tmp_path, *UNSHARE, "sh", "-c", ENTER, "sh") as (socket_path, _):
        session = await RawSession.open(socket_path)
        await session.request("POST", "/v1/setup", {"entropy": ENTROPY})
        try:
            yield session
        finally:
            await session.close()


@pytest.mark.parametrize("kind", ["real", "fake"])
async def test_a_guest_without_entropy_of_its_own(kind: str, tmp_path: Path) -> None:
    running = fake_agent(tmp_path) if kind == "fake" else real_agent(tmp_path)
    async with running as (socket_path, _):
        session = await RawSession.open(socket_path)
        assert (await session.request("GET", "/v1/hello")).status == 200
        for setup in ({}, {"env": {"A": "1"}}, {"entropy": "too short"}):
            await session.request("POST", "/v1/setup", setup)
            for method, path, body in (
                ("POST", "/v1/exec", b'{"argv": ["true"]}'), ("GET", "/v1/processes", b""),
                ("PUT", f"/v1/files{at(tmp_path / 'never')}", b"x"), ("GET", "/v1/account", b""),
            ):  # fmt: skip
                assert (await session.request(method, path, body)).error == (503, "not_set_up")
        assert (await session.request("POST", "/v1/setup", {"entropy": ENTROPY})).status == 204
        assert (await session.request("GET", "/v1/processes")).status == 200
        assert not (tmp_path / "never").exists()
        await session.close()


@pytest.mark.parametrize("spec", [{"shell": "true"}, {"login": True}], ids=str)
async def test_an_image_without_a_shell(bare: RawSession, spec: dict[str, object]) -> None:
    assert (await bare.request("POST", "/v1/exec", spec)).error == (422, "no_shell")


async def test_a_fake_image_without_a_shell(tmp_path: Path) -> None:
    async with fake_agent(tmp_path, has_shell=False) as (socket_path, _):
        session = await RawSession.open(socket_path)
        await session.request("POST", "/v1/setup", {"entropy": ENTROPY})
        for spec in ({"shell": "true"}, {"login": True}):
            assert (await session.request("POST", "/v1/exec", spec)).error == (422, "no_shell")
        await session.close()


async def test_a_full_disk(bare: RawSession) -> None:
    full = (507, "guest_disk_full")
    assert (await bare.request("PUT", f"/v1/files{at('/disk/file')}", b"x" * 300_000)).error == full
    answer = await bare.request("GET", f"/v1/files/list{at('/disk')}")
    assert bytes(answer.body) == b'{"end":true}\n'
    assert (await bare.request("PUT", f"/v1/files{at('/disk/file')}", b"x" * 100_000)).status == 200


async def test_an_image_without_accounts(bare: RawSession) -> None:
    assert (await bare.request("POST", "/v1/exec", {"argv": ["x"], "user": "me"})).error == (422, "no_such_user")
    assert (await bare.request("POST", "/v1/exec", {"argv": ["/nosuch"]})).error == (422, "command_not_found")
    info = (await bare.request("GET", f"/v1/files/stat{at('/disk')}")).json()
    assert (info["uid"], info["user"], info["group"]) == (0, None, None)
