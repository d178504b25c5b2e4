"""A guest whose root has taken the agent's port and floods it: ``flood.py SOCKET_PATH KIND``.

It runs as a process of its own, as a VMM does: what it costs the engine is only what the engine spends on it.
"""

from __future__ import annotations

import contextlib
import socket
import sys

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


def serve(connection: socket.socket, first: bytes, again: bytes) -> None:
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
                serve(connection, *FLOODS[kind])


if __name__ == "__main__":
    main()
