"""Section 3: what holds for every request, and the requests about the whole guest."""

import asyncio
import base64
import json
from typing import Any

import pytest

from tests.contract.agent.frames import run, start_background
from tests.contract.agent.implementations import Implementation

pytestmark = pytest.mark.anyio

ENTROPY = base64.b64encode(bytes(32)).decode()
BAD_REQUEST = (400, "bad_request")
WITH_JSON = [
    "/v1/setup", "/v1/freeze", "/v1/exec", "/v1/poweroff", "/v1/files/mkdir", "/v1/files/rename",
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"), ("GET", "/v2/hello"), ("GET", "/v1/nosuch"), ("POST", "/v1/hello"), ("GET", "/v1/exec"),
        ("PUT", "/v1/setup"), ("POST", "/v1/processes"), ("GET", "/v1/processes/p1/nosuch"), ("PATCH", "/v1/files"),
        ("POST", "/v1/files/stat?path=/"), ("GET", "/v1/files/nosuch?path=/"), ("GET", "/v1/poweroff"),
    ],
)  # fmt: skip
async def test_an_unknown_endpoint_is_a_bad_request(agent: Implementation, method: str, path: str) -> None:
    async with agent.session() as session:
        assert (await session.request(method, path)).error == BAD_REQUEST


@pytest.mark.parametrize("path", WITH_JSON)
@pytest.mark.parametrize("body", [b"{", b"[]", b'"x"', b"\xff", b"nothing", b'{"a": 1} x'])
async def test_a_body_that_is_not_a_json_object_is_a_bad_request(agent: Implementation, path: str, body: bytes) -> None:
    async with agent.session() as session:
        assert (await session.request("POST", path, body)).error == BAD_REQUEST


async def test_unknown_fields_are_ignored(agent: Implementation) -> None:
    async with agent.session() as session:
        future = {"of_the_future": {"a": [1]}}
        assert (await session.request("POST", "/v1/setup", future)).status == 204
        frames = await run(session, argv=["echo", "a"], env=agent.env, **future)
        assert frames.stdout == b"a\n"
        path = str(agent.folder / "d")
        assert (await session.request("POST", "/v1/files/mkdir", {"path": path} | future)).status == 204


async def test_hello(agent: Implementation) -> None:
    async with agent.session() as session:
        answer = await session.request("GET", "/v1/hello")
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        hello = answer.json()
        types = {"protocol": int, "agent_version": str, "boot_id": str, "kernel": str, "uptime_ms": int, "set_up": bool}
        assert {name: type(value) for name, value in hello.items()} == types
        assert hello["protocol"] == 1
        assert hello["uptime_ms"] > 0


async def test_setup_accepts_an_identity(agent: Implementation) -> None:
    identity = {
        "hostname": "vm-7k2m",
        "time_unix_ms": 1763775600000,
        "entropy": base64.b64encode(bytes(32)).decode(),
        "machine_id": "0" * 32,
        "env": agent.env,
    }
    async with agent.session() as session:
        for body in (identity, {}, b""):
            answer = await session.request("POST", "/v1/setup", body)
            assert (answer.status, bytes(answer.body)) == (204, b"")


async def test_a_guest_is_frozen_and_goes_on_with_entropy(agent: Implementation) -> None:
    async with agent.session() as session:
        for body in ({}, {"sync": True}, b""):
            answer = await session.request("POST", "/v1/freeze", body)
            assert (answer.status, bytes(answer.body)) == (204, b"")
        for setup, goes_on in (
            ({}, False),
            ({"env": agent.env}, False),
            ({"entropy": ENTROPY, "restored": True}, True),
        ):
            assert (await session.request("POST", "/v1/setup", setup)).status == 204
            assert (await session.request("GET", "/v1/hello")).json()["set_up"] is goes_on
        assert (await run(session, argv=["echo", "a"], env=agent.env)).stdout == b"a\n"


async def test_requests_to_a_frozen_guest_wait(agent: Implementation) -> None:
    await agent.client.freeze(sync=False)
    waiting = asyncio.create_task(agent.client.processes())
    await agent.client.set_env(agent.env)
    assert not waiting.done()
    await agent.client.thaw()
    assert await waiting == []


@pytest.mark.parametrize(
    "field",
    [
        {"hostname": ""}, {"hostname": "a b"}, {"hostname": "-a"}, {"hostname": "a\n1.2.3.4 evil"}, {"hostname": 1},
        {"hostname": "a" * 65}, {"machine_id": "0" * 31}, {"machine_id": "G" * 32}, {"machine_id": []},
        {"entropy": "!"}, {"entropy": base64.b64encode(bytes(31)).decode()},
        {"entropy": base64.b64encode(bytes(513)).decode()}, {"time_unix_ms": "now"}, {"time_unix_ms": 1.5},
        {"env": []}, {"env": {"": "x"}}, {"env": {"A=B": "x"}}, {"env": {"A": "\0"}}, {"env": {"A": 1}},
    ],
    ids=str,
)  # fmt: skip
async def test_setup_changes_nothing_if_a_field_is_wrong(agent: Implementation, field: dict[str, Any]) -> None:
    async with agent.session() as session:
        body = {"env": {"PATH": "/nowhere"}} | field
        assert (await session.request("POST", "/v1/setup", body)).error == BAD_REQUEST
        assert (await run(session, argv=["true"])).exit["exit_code"] == 0


async def test_setup_replaces_the_environment(agent: Implementation) -> None:
    async with agent.session() as session:
        for added in ({"A": "1", "B": "\udcff"}, {"B": "2"}):
            assert (await session.request("POST", "/v1/setup", {"env": agent.env | added})).status == 204
            frames = await run(session, argv=["env"])
            seen = {name: value for name, value in json.loads(frames.stdout).items() if name in ("A", "B")}
            assert seen == added


@pytest.mark.parametrize("grace_ms", [-1, 3_600_001, "1", 0.5])
async def test_a_wrong_grace_does_not_power_off(agent: Implementation, grace_ms: object) -> None:
    async with agent.session() as session:
        assert (await session.request("POST", "/v1/poweroff", {"grace_ms": grace_ms})).error == BAD_REQUEST
        assert (await session.request("GET", "/v1/hello")).status == 200


async def test_poweroff(agent: Implementation) -> None:
    async with agent.session() as session:
        _, answer = await session.send("POST", "/v1/poweroff", b'{"grace_ms": 20}')
        await session.wait_for_headers(answer)
        assert answer.status == 202
        async with asyncio.timeout(10):
            await agent.ended.wait()


async def test_nothing_starts_while_the_guest_powers_off(agent: Implementation) -> None:
    async with agent.session() as session:
        await start_background(session, argv=["stubborn"])
        _, answer = await session.send("POST", "/v1/poweroff", b'{"grace_ms": 1000}')
        await session.wait_for_headers(answer)
        refused = await session.request("POST", "/v1/exec", {"argv": ["true"]})
        assert refused.error == (503, "powering_off")
