"""Unix sockets at paths of any length.

A socket address holds at most 107 bytes, and the path of a state directory can be longer. Both sides therefore open the
directory and use the address ``/proc/self/fd/N/name``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
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


def connect_in(folder: int, name: str) -> socket.socket:
    """Connect to the socket ``name`` in the directory open as ``folder``.

    No symbolic link is followed, so whoever can write to the directory cannot lead this process to another socket.
    The socket does not block.

    Raises `FileNotFoundError`, `ConnectionRefusedError`, `BlockingIOError`.
    """
    found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        if not stat.S_ISSOCK(os.fstat(found).st_mode):
            raise ConnectionRefusedError(errno.ECONNREFUSED, "not a socket", name)
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.setblocking(False)
        with Undo(client.close):
            client.connect(f"/proc/self/fd/{found}")
        return client
    finally:
        os.close(found)
