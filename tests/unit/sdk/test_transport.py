"""The streams beneath httpx: unix sockets whose users leave at any moment."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpcore
import httpx
import pytest

from squib.host import sockets
from squib.sdk.liveness import Liveness
from squib.sdk.streams import Backend
from squib.sdk.transport import EngineTransport

TOO_MUCH = bytes(8 << 20)
"""More than the buffers of a unix socket hold."""

Stream = httpcore.AsyncNetworkStream
Wait = Callable[[Stream], Awaitable[object]]


async def responds(timeout_s: float) -> bool:
    """In the place of a probe."""
    return True


async def connect(path: Path, timeout: float | None = None) -> Stream:
    return await Backend(Liveness(responds)).connect_unix_socket(str(path), timeout)


async def begun(work: Awaitable[object]) -> asyncio.Future[object]:
    """A task that has come to where it waits."""
    task = asyncio.ensure_future(work)
    for _ in range(5):
        await asyncio.sleep(0)
    return task


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("wait", "ready"),
    [
        (lambda stream: stream.write(TOO_MUCH), lambda peer: peer.recv(len(TOO_MUCH))),
        (lambda stream: stream.read(1), lambda peer: peer.send(b"x")),
    ],
    ids=["write", "read"],
)
async def test_waiting_is_cancelled_in_the_moment_in_which_it_would_end(
    tmp_path: Path, wait: Wait, ready: Callable[[socket.socket], object]
) -> None:
    reported: list[dict[str, Any]] = []

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(context))
    with sockets.listen(tmp_path / "s") as server:
        stream = await connect(tmp_path / "s")
        peer, _ = server.accept()
        task = await begun(wait(stream))
        ready(peer)
        loop.call_soon(task.cancel)  # runs before what the event loop then hears of the socket
        with pytest.raises(asyncio.CancelledError):
            await task
        await stream.aclose()
        peer.close()
    assert reported == []


@pytest.mark.anyio
async def test_a_full_queue_is_waited_for(tmp_path: Path) -> None:
    with sockets.listen(tmp_path / "s") as server:
        server.listen(0)
        first = await connect(tmp_path / "s", timeout=5)
        with pytest.raises(httpcore.ConnectTimeout):
            await connect(tmp_path / "s", timeout=0.05)
        second = asyncio.create_task(connect(tmp_path / "s", timeout=5))
        peers = [(await asyncio.to_thread(server.accept))[0] for _ in range(2)]
        await (await second).write(b"second")
        assert peers[1].recv(10) == b"second"
        for stream in (first, second.result()):
            await stream.aclose()
        for peer in peers:
            peer.close()


@pytest.mark.anyio
async def test_silence_and_a_lost_peer_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(httpcore.ConnectError):
        await connect(tmp_path / "s")
    with sockets.listen(tmp_path / "s") as server:
        stream = await connect(tmp_path / "s")
        peer, _ = server.accept()
        with pytest.raises(httpcore.ReadTimeout):
            await stream.read(1, timeout=0.01)
        with pytest.raises(httpcore.WriteTimeout):
            await stream.write(TOO_MUCH, timeout=0.01)
        assert not stream.get_extra_info("is_readable")
        peer.close()
        with pytest.raises(httpcore.WriteError):
            await stream.write(b"x")
        await stream.aclose()


@pytest.mark.parametrize(
    "wait", [lambda stream: stream.write(TOO_MUCH), lambda stream: stream.read(1)], ids=["write", "read"]
)
@pytest.mark.anyio
async def test_closing_ends_the_waiting_and_leaves_its_number_to_the_next(tmp_path: Path, wait: Wait) -> None:
    with sockets.listen(tmp_path / "s") as server:
        stream = await connect(tmp_path / "s")
        peer, _ = server.accept()
        task = await begun(wait(stream))
        await stream.aclose()
        with pytest.raises((httpcore.ReadError, httpcore.WriteError)):
            await asyncio.wait_for(task, 5)
        with pytest.raises((httpcore.ReadError, httpcore.WriteError)):
            await wait(stream)
        peer.close()

        following = await connect(tmp_path / "s")
        peer, _ = server.accept()
        reading = await begun(following.read(1, timeout=5))
        peer.send(b"x")
        assert await reading == b"x"
        await following.aclose()
        peer.close()


@pytest.mark.anyio
async def test_a_client_is_closed_while_requests_are_under_way(tmp_path: Path) -> None:
    with sockets.listen(tmp_path / "s") as server:
        transport = EngineTransport(socket_path=tmp_path / "s", tls=False, liveness=Liveness(responds))
        async with httpx.AsyncClient(base_url="http://squib", transport=transport, timeout=None) as http:
            tasks = [asyncio.create_task(http.get("/")) for _ in range(3)]
            peers = [(await asyncio.to_thread(server.accept))[0] for _ in tasks]
            for peer in peers:
                await asyncio.to_thread(peer.recv, 1)
        done, waiting = await asyncio.wait(tasks, timeout=5)
        assert not waiting
        assert all(isinstance(task.exception(), httpx.ReadError) for task in done)
        for peer in peers:
            peer.close()
