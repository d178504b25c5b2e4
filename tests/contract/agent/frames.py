"""The frames of the contract, read by hand: section ``POST /v1/exec`` of ``protocol/agent.md``."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any

from tests.contract.agent.http2 import Answer, RawSession

STARTED, STDOUT, STDERR, EXIT = range(4)
TYPE = "application/vnd.squib.frames"
_HEADER = struct.Struct(">BIQ")


@dataclass(frozen=True)
class Frames:
    """A whole stream of frames."""

    started: dict[str, Any]
    exit: dict[str, Any]
    output: list[tuple[int, int, bytes]]
    """Kind, offset and payload of each frame in between."""

    def stream(self, kind: int, *, start: int = 0) -> bytes:
        """The bytes of one stream, which must be contiguous from the offset ``start`` on."""
        data = b""
        for _, offset, payload in (frame for frame in self.output if frame[0] == kind):
            assert offset == start + len(data)
            data += payload
        return data

    @property
    def stdout(self) -> bytes:
        return self.stream(STDOUT)

    @property
    def stderr(self) -> bytes:
        return self.stream(STDERR)


def parse(body: bytes) -> list[tuple[int, int, bytes]]:
    """Cut a body into frames."""
    frames = []
    while body:
        kind, length, offset = _HEADER.unpack_from(body)
        assert length <= 65_536
        end = _HEADER.size + length
        assert len(body) >= end
        frames.append((kind, offset, body[_HEADER.size : end]))
        body = body[end:]
    return frames


def parse_whole(answer: Answer) -> Frames:
    """Read a complete response."""
    assert (answer.status, answer.headers["content-type"], answer.reset) == (200, TYPE, None)
    first, *output, last = parse(bytes(answer.body))
    assert (first[:2], last[:2]) == ((STARTED, 0), (EXIT, 0))
    assert {kind for kind, _, _ in output} <= {STDOUT, STDERR}
    started, ended = json.loads(first[2]), json.loads(last[2])
    assert set(started) == {"id", "pid"}
    assert set(ended) - {"oom_killed"} == {"exit_code", "signal", "timed_out", "duration_ms"}
    assert (ended["exit_code"] is None) != (ended["signal"] is None)
    return Frames(started, ended, output)


async def run(session: RawSession, **spec: Any) -> Frames:
    """Run a command to its end."""
    return parse_whole(await session.request("POST", "/v1/exec", spec))


async def start(session: RawSession, **spec: Any) -> tuple[str, int, Answer]:
    """Start a command; its id, the number of the stream, and the answer that follows it."""
    stream, answer = await session.send("POST", "/v1/exec", json.dumps(spec).encode())
    await session.read_until(answer, b'"pid"')
    return json.loads(parse(bytes(answer.body[: _HEADER.size + answer.body[4]]))[0][2])["id"], stream, answer


async def start_background(session: RawSession, **spec: Any) -> str:
    """Start a background command, and leave it."""
    process, stream, answer = await start(session, background=True, **spec)
    if not answer.ended:
        session.cancel(stream)
    return process


async def end_of(session: RawSession, process: str) -> Frames:
    """Follow a command without its output until it ends."""
    return parse_whole(await session.request("GET", f"/v1/processes/{process}/output?none=1"))
