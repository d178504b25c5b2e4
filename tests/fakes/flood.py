"""A guest whose root has taken the agent's port and floods it: ``flood.py SOCKET_PATH KIND``.

It runs as a process of its own, as a VMM does: what it costs the engine is only what the engine spends on it.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import sys
import threading
from typing import BinaryIO

_DATA, _HEADERS, _PRIORITY, _SETTINGS, _PING, _WINDOW_UPDATE, _CONTINUATION = 0, 1, 2, 4, 6, 8, 9
_END_HEADERS = 4


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    """One HTTP/2 frame."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


_OK = frame(_HEADERS, b"\x88", flags=_END_HEADERS, stream=1)
_HUFFMAN = b"\x00\x01a\xff" + b"\xe1\xff\x7f" + bytes(15 << 20)  # a header whose value is 15 MiB of Huffman code

FLOODS: dict[str, tuple[bytes, bytes]] = {
    "window_update": (b"", frame(_WINDOW_UPDATE, (1).to_bytes(4, "big"))),
    "priority": (b"", frame(_PRIORITY, bytes(5), stream=3)),
    "settings": (b"", frame(_SETTINGS, b"\0\4\0\1\0\0")),
    "settings_in_one": (b"", frame(_SETTINGS, b"\0\4\0\1\0\0" * 40_000)),
    "ping": (b"", frame(_PING, b"squibber")),
    "tiny_data": (_OK, frame(_DATA, b"x", stream=1)),
    "empty_data": (_OK, frame(_DATA, b"", stream=1)),
    "header": (
        frame(_HEADERS, _HUFFMAN[:200_000], stream=1),
        frame(_CONTINUATION, _HUFFMAN[200_000:400_000], stream=1),
    ),
}
"""What each kind sends first, and what it sends then without end."""

_WINDOW = 256 * 1024
_OUTPUT = struct.Struct(">BIQ")
_BULK = 60_000


class Window:
    """What the engine lets a guest send in a response."""

    def __init__(self) -> None:
        self._left = _WINDOW
        self._changed = threading.Condition()

    def take(self, size: int) -> None:
        """Wait until ``size`` bytes may be sent."""
        with self._changed:
            self._changed.wait_for(lambda: self._left >= size)
            self._left -= size

    def read(self, stream: BinaryIO) -> None:
        """Read what the engine sends, to its end."""
        while header := stream.read(9):
            payload = stream.read(int.from_bytes(header[:3], "big"))
            if header[3] == _WINDOW_UPDATE and header[5:] != bytes(4):
                with self._changed:
                    self._left += int.from_bytes(payload, "big")
                    self._changed.notify()
        with self._changed:
            self._left = 1 << 62  # the engine is gone: writing fails
            self._changed.notify()


def print_bytes(connection: socket.socket, stream: BinaryIO) -> None:
    """Send a command's output as an agent may, and in frames of one byte."""
    window = Window()
    threading.Thread(target=window.read, args=(stream,), daemon=True).start()
    started = json.dumps({"id": "p1", "pid": 7}).encode()
    window.take(_OUTPUT.size + len(started))
    connection.sendall(_OK + frame(_DATA, _OUTPUT.pack(0, len(started), 0) + started, stream=1))
    count = _BULK // (_OUTPUT.size + 1)
    for start in range(0, 1 << 62, count):
        output = b"".join(_OUTPUT.pack(1, 1, offset) + b"x" for offset in range(start, start + count))
        window.take(len(output))
        connection.sendall(frame(_DATA, output, stream=1))


OUTPUT = "output"
KINDS = (*FLOODS, OUTPUT)


def serve(connection: socket.socket, kind: str) -> None:
    """Do the handshake, wait for the first request, and flood."""
    stream = connection.makefile("rb")
    while b"SQUIB-SYNC" not in (line := stream.readline()):
        if not line:
            return
    connection.sendall(b"SQUIB-OK 1 %s\n" % line.split()[-1] + frame(_SETTINGS))
    stream.readline()
    stream.read(24)  # the client preface
    while (header := stream.read(9)) and header[3] != _HEADERS:
        stream.read(int.from_bytes(header[:3], "big"))
    stream.read(int.from_bytes(header[:3], "big"))
    if kind == OUTPUT:
        print_bytes(connection, stream)
    first, again = FLOODS[kind]
    connection.sendall(first)
    burst = again * max(1, 60_000 // len(again))
    while True:
        connection.sendall(burst)


def main() -> None:
    path, kind = sys.argv[1:]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        while True:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                serve(connection, kind)


if __name__ == "__main__":
    main()
