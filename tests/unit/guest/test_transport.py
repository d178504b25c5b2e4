"""The stream of a session, cut into frames wherever the socket happens to break it."""

import asyncio
import itertools
import random
import socket
from itertools import pairwise

import pytest
from h2.exceptions import ProtocolError

from squib.guest import budget
from squib.guest.budget import LoopBudget
from squib.guest.transport import MAX_FRAME_BYTES, FrameTransport, Sink

pytestmark = pytest.mark.anyio

_DATA, _PING = 0, 6
_END_STREAM, _PADDED = 1, 8
_BODY_STREAM, _OTHER_STREAM = 1, 3


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


class Recorder:
    """A session that takes the body of one stream directly, and every other frame whole."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.frames: list[bytes] = []
        self.error: Exception | None = None
        self.gone = asyncio.Event()

    def sink(self, stream_id: int, size: int) -> Sink | None:
        return self.body.extend if stream_id == _BODY_STREAM else None

    def body_ended(self, stream_id: int) -> None:
        self.frames.append(b"end of %d" % stream_id)

    def receive(self, frame: bytes) -> None:
        self.frames.append(frame)

    def turn_ended(self) -> None:
        pass

    def lost(self, error: Exception | None) -> None:
        self.error = self.error or error
        self.gone.set()


async def received(*pieces: bytes, with_the_handshake: bytes = b"") -> Recorder:
    """What a session gets of a guest that sends ``pieces`` and closes."""
    session = Recorder()
    ours, guests = socket.socketpair()
    ours.setblocking(False)
    guests.setblocking(False)
    transport = await FrameTransport.open(ours, session, LoopBudget())
    transport.start(with_the_handshake)
    with guests:
        for piece in pieces:
            await asyncio.get_running_loop().sock_sendall(guests, piece)
    async with asyncio.timeout(10):
        await session.gone.wait()
    return session


async def test_frames_are_the_same_wherever_the_stream_breaks() -> None:
    rng = random.Random(1)
    body = rng.randbytes(3 * MAX_FRAME_BYTES)
    sent = b""
    others = []
    for start, end in pairwise([0, 1, 700, 70_000, 70_000 + MAX_FRAME_BYTES, len(body) - MAX_FRAME_BYTES, len(body)]):
        last = _END_STREAM if end == len(body) else 0
        others.append(frame(_DATA, rng.randbytes(rng.choice([0, 5, MAX_FRAME_BYTES])), stream=_OTHER_STREAM))
        others.append(frame(_PING, b"squibber"))
        sent += others[-2] + frame(_DATA, body[start:end], flags=last, stream=_BODY_STREAM) + others[-1]
    others.insert(-1, b"end of %d" % _BODY_STREAM)
    for size in (1 << 20, 65_536, 4_001):
        session = await received(*(sent[at : at + size] for at in range(0, len(sent), size)))
        assert session.body == body
        assert session.frames == others
    session = await received(sent[MAX_FRAME_BYTES:], with_the_handshake=sent[:MAX_FRAME_BYTES])
    assert (session.body, session.frames, session.error) == (body, others, None)


async def test_a_header_in_single_bytes() -> None:
    data = frame(_DATA, b"abc", stream=_BODY_STREAM) + frame(_PING, b"squibber")
    session = Recorder()

    transport = FrameTransport(session, LoopBudget())
    for byte in data:
        transport.get_buffer(-1)[0] = byte
        transport.buffer_updated(1)
    assert (session.body, session.frames) == (b"abc", [frame(_PING, b"squibber")])


@pytest.mark.parametrize(
    "wrong",
    [
        (MAX_FRAME_BYTES + 1).to_bytes(3, "big") + bytes(6),
        b"\xff" * 9,
        frame(_DATA, b"\x01ab", flags=_PADDED, stream=_BODY_STREAM),
    ],
)
async def test_what_no_agent_sends_ends_the_session(wrong: bytes) -> None:
    session = await received(frame(_DATA, b"good", stream=_BODY_STREAM) + wrong + frame(_PING, b"squibber"))
    assert isinstance(session.error, ProtocolError)
    assert (session.body, session.frames) == (b"good", [])


async def test_a_fault_in_a_later_turn_closes_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop reports the fault. Requests fail, instead of waiting for a connection that nobody reads."""

    class Faulty(Recorder):
        def receive(self, frame: bytes) -> None:
            super().receive(frame)
            if len(self.frames) == 100:
                raise KeyError("a fault")

    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context["exception"]))
    ticks = itertools.count()
    monkeypatch.setattr(LoopBudget, "clock", staticmethod(lambda: next(ticks) * 0.01))
    monkeypatch.setattr(budget, "_MAX_WAIT_S", 0.001)
    session = Faulty()
    ours, guests = socket.socketpair()
    ours.setblocking(False)
    with guests:
        guests.sendall(frame(_PING, b"squibber") * 200)
        transport = await FrameTransport.open(ours, session, LoopBudget())
        transport.start(b"")
        async with asyncio.timeout(10):
            await session.gone.wait()
    assert [type(fault) for fault in faults] == [KeyError]
