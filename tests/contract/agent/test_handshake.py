"""Section 2: the handshake, and what a stream may hold before it."""

import asyncio

import pytest

from tests.contract.agent.frames import run, start, start_background
from tests.contract.agent.http2 import PREFACE, RawSession, new_nonce
from tests.contract.agent.implementations import Implementation

pytestmark = pytest.mark.anyio
MAX_FRAME = 262_144
FLUSH = b"\xff" * (MAX_FRAME + 9)


async def connect(agent: Implementation) -> RawSession:
    return RawSession(*await asyncio.open_unix_connection(agent.socket_path))


async def says_hello(session: RawSession) -> bool:
    session.begin()
    return (await session.request("GET", "/v1/hello")).status == 200


@pytest.mark.parametrize(
    "stale", [b"\x00\x01binary", b"SQUIB-GO 1 " + b"0" * 32 + b"\n", b"x" * 300_000, b"\n\n", b"SQUIB-SYNC 1 "]
)
async def test_bytes_before_the_handshake_are_discarded(agent: Implementation, stale: bytes) -> None:
    session = await connect(agent)
    session.writer.write(stale)
    await session.shake_hands()
    assert await says_hello(session)
    await session.close()


async def test_only_the_last_nonce_starts_a_session(agent: Implementation) -> None:
    session = await connect(agent)
    first, second = new_nonce(), new_nonce()
    assert await session.sync(first) == b"SQUIB-OK 1 %s\n" % first
    assert await session.sync(second) == b"SQUIB-OK 1 %s\n" % second
    session.writer.write(b"SQUIB-GO 1 %s\n%s" % (first, PREFACE))
    third = new_nonce()
    assert await session.sync(third) == b"SQUIB-OK 1 %s\n" % third  # and not a frame of HTTP/2
    session.writer.write(b"SQUIB-GO 1 %s\n" % third)
    assert await says_hello(session)
    await session.close()


@pytest.mark.parametrize("after", [b"garbage\n", PREFACE[:10], PREFACE[:-1] + b"x"])
async def test_a_go_without_a_preface_starts_nothing(agent: Implementation, after: bytes) -> None:
    session = await connect(agent)
    await session.shake_hands()
    session.writer.write(after)
    await session.shake_hands()
    assert await says_hello(session)
    await session.close()


async def test_another_version_is_answered_with_the_agents_own(agent: Implementation) -> None:
    session = await connect(agent)
    nonce = new_nonce()
    assert await session.sync(nonce, version=2) == b"SQUIB-OK 1 %s\n" % nonce
    session.writer.write(b"SQUIB-GO 2 %s\n" % nonce)
    assert await session.sync(nonce) == b"SQUIB-OK 1 %s\n" % nonce
    await session.close()


@pytest.mark.parametrize(
    "line", [b"SQUIB-SYNC 1 " + b"A" * 32, b"SQUIB-SYNC x " + b"0" * 32, b"SQUIB-SYNC 1 " + b"0" * 31, b"SQUIB-SYNC 1"]
)
async def test_a_malformed_line_is_not_answered(agent: Implementation, line: bytes) -> None:
    session = await connect(agent)
    session.writer.write(line + b"\n")
    nonce = new_nonce()
    assert await session.sync(nonce) == b"SQUIB-OK 1 %s\n" % nonce
    await session.close()


@pytest.mark.parametrize("cut", [0, 4, 9, 5000])
async def test_a_flush_ends_a_live_session_wherever_it_is(agent: Implementation, cut: int) -> None:
    session = await connect(agent)
    await session.shake_hands()
    assert await says_hello(session)
    unknown_frame = b"\x04\x00\x00\xbb" + bytes(5) + bytes(MAX_FRAME)
    nonce = new_nonce()
    session.writer.write(unknown_frame[:cut] + FLUSH)
    answer = await session.sync(nonce)
    assert answer.endswith(b"SQUIB-OK 1 %s\n" % nonce)
    assert b"\x00\x07\x00\x00\x00\x00\x00" not in answer, "a GOAWAY"
    session.writer.write(b"SQUIB-GO 1 %s\n" % nonce)
    again = RawSession(session.reader, session.writer)
    assert await says_hello(again)
    await again.close()


async def test_a_new_session_ends_the_one_before(agent: Implementation) -> None:
    async with agent.session() as old, agent.session() as new:
        assert (await new.request("GET", "/v1/hello")).status == 200
        with pytest.raises(ConnectionError):
            await old.request("GET", "/v1/hello")


async def test_the_end_of_a_session_kills_foreground_commands_only(agent: Implementation) -> None:
    async with agent.session() as session:
        foreground, _, _ = await start(session, argv=["sleep"])
        background = await start_background(session, argv=["sleep"])
    async with agent.session() as session:
        async with asyncio.timeout(10):
            while {background} != {
                process["id"] for process in (await session.request("GET", "/v1/processes")).json()["processes"]
            }:
                await asyncio.sleep(0.001)
        assert (await session.request("GET", f"/v1/processes/{foreground}")).error == (404, "no_such_process")
        assert (await run(session, argv=["true"])).exit["exit_code"] == 0
