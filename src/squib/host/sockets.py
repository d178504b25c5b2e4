"""Unix sockets at paths of any length.

A socket address holds at most 107 bytes, and the path of a state directory can be longer. Both sides therefore open the
directory and use the address ``/proc/self/fd/N/name``.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from squib.undo import Undo


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """Yield a short name for ``path``.

    Only this process can use it, until the block ends.
    """
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def listen(path: Path, *, mode: int = 0o600) -> socket.socket:
    """Listen at ``path``, replacing what is there.

    The default ``mode`` lets only this user connect.
    """
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with Undo(server.close):
        # The mode is set before listen(), because nobody can connect before it.
        with short_path(path) as name:
            server.bind(name)
        path.chmod(mode)
        server.listen(128)
    return server


def is_served(path: Path) -> bool:
    """Return whether a process listens on the socket at ``path``, at once.

    Raises `PermissionError`.
    """
    try:
        connect(path, blocking=False).close()
    except BlockingIOError:  # its backlog is full
        return True
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        return False
    return True


def connect(path: Path, *, blocking: bool = True) -> socket.socket:
    """Connect to the socket at ``path``.

    Raises `FileNotFoundError`, `ConnectionRefusedError`; without ``blocking`` also `BlockingIOError`, if the listener's
    backlog is full.
    """
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.setblocking(blocking)
    with Undo(client.close), short_path(path) as name:
        client.connect(name)
    return client
