"""A limit for the output that the result of a command keeps."""

import tracemalloc

import pytest

from squib import InvalidArgument, OutputTooLarge
from squib.models import ExecRequest
from squib.protocol.frames import CommandEnd, Frame, FrameKind
from squib.sdk.command import exec_request
from squib.sdk.result import Collector, ExecResult, Truncate

OUT, ERR = FrameKind.STDOUT, FrameKind.STDERR


def collect(max_bytes: int, truncate: Truncate, *pieces: tuple[FrameKind, bytes]) -> ExecResult:
    collector = Collector(None, None, max_bytes, truncate)
    for kind, data in pieces:
        collector.add(Frame(kind, data))
    return collector.result(CommandEnd(0, None, False, 0.1))


PIECES = (OUT, b"one"), (ERR, b"two"), (OUT, b"three")


@pytest.mark.parametrize(
    ("limit", "truncate", "output", "stdout", "dropped"),
    [
        (11, "head", b"onetwothree", b"onethree", 0),
        (11, "error", b"onetwothree", b"onethree", 0),
        (4, "head", b"onet", b"one", 7),
        (4, "tail", b"hree", b"hree", 7),
        (7, "tail", b"wothree", b"three", 4),
        (0, "head", b"", b"", 11),
        (0, "tail", b"", b"", 11),
    ],
)
def test_the_result_keeps_the_head_or_the_tail(
    limit: int, truncate: Truncate, output: bytes, stdout: bytes, dropped: int
) -> None:
    result = collect(limit, truncate, *PIECES)
    assert (result.output_bytes, result.stdout_bytes) == (output, stdout)
    assert (result.truncated, result.dropped_bytes) == (dropped > 0, dropped)


def test_more_than_the_limit_can_be_an_error() -> None:
    with pytest.raises(OutputTooLarge, match="more than 10 bytes"):
        collect(10, "error", *PIECES)


@pytest.mark.parametrize("truncate", ["head", "tail"])
def test_memory_is_bounded_meanwhile(truncate: Truncate) -> None:
    """Also if the command writes single bytes: each was kept as an object."""
    collector = Collector(None, None, 1 << 20, truncate)
    tracemalloc.start()
    try:
        for _ in range(200):
            collector.add(Frame(OUT, bytes(1 << 16)))
        for _ in range(20_000):
            collector.add(Frame(OUT, b"x"))
        assert tracemalloc.get_traced_memory()[1] < 3 << 20
    finally:
        tracemalloc.stop()
    assert len(collector.result(CommandEnd(0, None, False, 0.1)).output_bytes) == 1 << 20


@pytest.mark.parametrize(("limit", "truncate"), [(-1, "head"), (1, "middle")])
def test_a_limit_is_checked(limit: int, truncate: Truncate) -> None:
    with pytest.raises(InvalidArgument):
        Collector(None, None, limit, truncate)


def test_a_timeout_of_zero_is_none() -> None:
    """Before: `timeout_s: Input should be greater than 0`."""
    assert exec_request("true", timeout=0).timeout_s is None
    assert ExecRequest.model_validate({"argv": ["true"], "timeout_s": 0}).timeout_s is None
