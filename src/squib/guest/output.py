"""The output of a command on its way from the guest to a client.

The frames are specified in ``protocol/agent.md``, ``POST /v1/exec``. The engine forwards them and does not look into
them. It checks their headers, because a guest must not send the frames that only the engine makes (``ERROR``), and
because the engine's own frame can follow only a complete one.
"""

from __future__ import annotations

from collections.abc import Iterator

from squib.errors import AgentProtocolError
from squib.protocol.frames import HEADER, MAX_PAYLOAD_BYTES, FrameKind

_MAX_FRAMES = 32
"""Frames are forwarded in parts of at most this many, so that small ones do not take long in a row."""
_GUEST_KINDS = frozenset(FrameKind) - {FrameKind.ERROR}
_STDOUT, _STDERR = int(FrameKind.STDOUT), int(FrameKind.STDERR)
_MAX_OFFSET = (1 << 64) - MAX_PAYLOAD_BYTES


class OutputChecker:
    """Checks the frames of one response.

    Their payloads are not decoded. An incomplete frame is held back.
    """

    def __init__(self) -> None:
        self._held: list[memoryview] = []  # the pieces of an incomplete frame
        self._held_bytes = 0
        self._wanted_bytes = HEADER.size  # what is needed to look at it again
        self._started = False
        self._ended = False
        self._offsets = {_STDOUT: 0, _STDERR: 0}  # where the next frame may begin

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the frames that are complete with ``data``.

        Raises `AgentProtocolError` at the first bad one.
        """
        if self._held:
            self._hold(memoryview(data))
            if self._held_bytes < self._wanted_bytes:
                return
            data = b"".join(self._held)
            self._held, self._held_bytes = [], 0
        start = 0
        while True:
            end, error = self._scan(data, start)
            if end > start:
                yield data[start:end]  # (of all of it this is no copy)
            if error:
                raise error
            if len(data) - end < self._wanted_bytes:
                if end < len(data):
                    self._hold(memoryview(data)[end:])
                return
            start = end

    def finish(self) -> None:
        """Check that the response ended after a command's end.

        Raises `AgentProtocolError`.
        """
        if not self._ended:
            raise AgentProtocolError("the guest ended the output without saying how the command ended")
        if self._held:
            raise AgentProtocolError("the guest sent bytes after the end of the command")

    def _hold(self, data: memoryview) -> None:
        self._held.append(data)
        self._held_bytes += len(data)

    def _scan(self, data: bytes, start: int) -> tuple[int, AgentProtocolError | None]:
        """Find the end of the complete, valid frames from ``start`` on.

        Returns the end and the error of the frame that follows, if it is invalid. Scans at most `_MAX_FRAMES`.
        """
        size, offsets, unpack = len(data), self._offsets, HEADER.unpack_from
        for _ in range(_MAX_FRAMES):
            self._wanted_bytes = HEADER.size
            if size - start < HEADER.size:
                break
            kind, length, offset = unpack(data, start)
            in_order = kind in offsets and offsets[kind] <= offset <= _MAX_OFFSET
            is_next_output = in_order and length <= MAX_PAYLOAD_BYTES and self._started and not self._ended
            if not is_next_output and (error := self._error(kind, length, offset, in_order=in_order)):
                return start, error
            end = start + HEADER.size + length
            if end > size:
                self._wanted_bytes = end - start
                break
            start = end
            if kind in offsets:
                offsets[kind] = offset + length
            else:
                self._started = True
                self._ended = kind == FrameKind.EXIT
        return start, None

    def _error(self, kind: int, length: int, offset: int, *, in_order: bool) -> AgentProtocolError | None:
        """Return the error of a frame's header, or ``None`` if it is valid."""
        if kind not in _GUEST_KINDS:
            return AgentProtocolError(f"the guest sent a frame of kind {kind}, which a guest must not send")
        if self._ended:
            return AgentProtocolError("the guest sent a frame after the end of the command")
        if self._started == (kind == FrameKind.STARTED):
            return AgentProtocolError("the guest must send one STARTED frame, before all others")
        if length > MAX_PAYLOAD_BYTES:
            return AgentProtocolError(f"the guest sent a frame of {length} bytes; the limit is {MAX_PAYLOAD_BYTES}")
        if not in_order and (kind in self._offsets or offset):
            return AgentProtocolError(f"the guest sent a frame of kind {kind} with the wrong offset {offset}")
        return None
