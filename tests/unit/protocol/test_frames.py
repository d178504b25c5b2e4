"""Frames: what is written is read, in pieces of any size; what is no frame is refused."""

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
    assert not decoder.pending


def test_an_unfinished_frame_is_pending() -> None:
    decoder = FrameDecoder()
    assert list(decoder.feed(encode(FrameKind.STDOUT, b"abc")[:-1])) == []
    assert decoder.pending


@pytest.mark.parametrize("header", [HEADER.pack(9, 0, 0), HEADER.pack(1, MAX_PAYLOAD_BYTES + 1, 0)])
def test_what_is_no_frame_is_refused(header: bytes) -> None:
    with pytest.raises(FrameError):
        list(FrameDecoder().feed(header))


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
