"""Unix sockets at paths of any length.

A socket address holds 107 bytes, less than many a state directory takes. Both sides therefore go through
``/proc/self/fd/N/name``, with a descriptor of the directory.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A short name for ``path`` that this process can use until the block ends."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def listen(path: Path, *, mode: int = 0o600) -> socket.socket:
    """A listening socket at ``path``, replacing what is there, that only this user (by ``mode``) may connect to."""
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # The mode is set before listen(): nobody can connect to it in between.
        with short_path(path) as name:
            server.bind(name)
        path.chmod(mode)
        server.listen(128)
    except BaseException:
        server.close()
        raise
    return server


def is_served(path: Path) -> bool:
    """Return whether a process listens on the socket at ``path``. Raises `PermissionError`."""
    try:
        connect(path).close()
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        return False
    return True


def connect(path: Path, *, blocking: bool = True) -> socket.socket:
    """A connection to the socket at ``path``. Raises `FileNotFoundError`, `ConnectionRefusedError`; one that is not
    ``blocking`` `BlockingIOError`, while so many others wait to be accepted that there is no room.
    """
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.setblocking(blocking)
    try:
        with short_path(path) as name:
            client.connect(name)
    except BaseException:
        client.close()
        raise
    return client
