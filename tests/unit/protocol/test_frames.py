"""Frames: encoded frames are decoded from pieces of any size, and invalid ones are rejected."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squib.protocol.frames import HEADER, MAX_PAYLOAD_BYTES, Frame, FrameDecoder, FrameError, FrameKind, encode

any_frame = st.builds(Frame, st.sampled_from(FrameKind), st.binary(max_size=300), st.integers(0, 2**64 - 1))


@given(st.lists(any_frame, max_size=8), st.integers(1, 400))
def test_frames_survive_any_cutting(frames: list[Frame], piece: int) -> None:
    stream = b"".join(encode(frame.kind, frame.payload, frame.offset) for frame in frames)
    decoder = FrameDecoder()
    read = [frame for at in range(0, len(stream), piece) for frame in decoder.feed(stream[at : at + piece])]
    assert read == frames


def test_frames_of_an_unknown_kind_are_skipped() -> None:
    newer = HEADER.pack(9, 3, 0) + b"abc"
    known = encode(FrameKind.STDOUT, b"x")
    decoder = FrameDecoder()
    read = [frame for byte in newer + known + newer for frame in decoder.feed(bytes([byte]))]
    assert read == [Frame(FrameKind.STDOUT, b"x")]


@pytest.mark.parametrize("kind", [1, 9])
def test_a_frame_that_is_too_long_is_rejected(kind: int) -> None:
    with pytest.raises(FrameError):
        list(FrameDecoder().feed(HEADER.pack(kind, MAX_PAYLOAD_BYTES + 1, 0)))


@given(st.binary(max_size=2000))
def test_hostile_bytes_end_in_frames_or_frame_errors(data: bytes) -> None:
    decoder = FrameDecoder()
    try:
        for frame in decoder.feed(data):
            assert len(frame.payload) <= MAX_PAYLOAD_BYTES
    except FrameError:
        pass


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b"\xff", b"[" * 50_000])
def test_a_payload_that_is_no_object_is_refused(payload: bytes) -> None:
    with pytest.raises(FrameError):
        Frame(FrameKind.EXIT, payload).json()
