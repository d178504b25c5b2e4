"""``files``: the files of a running VM. Contents are forwarded as they arrive, unread, in both directions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass

from squib.core.engine import Engine
from squib.core.guestio.exec import agent_of
from squib.core.guestio.stall import WatchedUpload, watch_upload, watched_response
from squib.errors import AgentTimeout, SquibError
from squib.guest.files import AgentFiles
from squib.guest.response import Response
from squib.models import FileInfo
from squib.protocol.guestfiles import check_path

_START_TIMEOUT_S = 60.0
"""Until a response begins: the guest may have to read a large directory first."""


@dataclass(frozen=True)
class GuestStream:
    """Bytes that a guest sends. ``length`` is their number if it is known in advance."""

    engine: Engine
    vm_id: str
    response: Response

    @property
    def length(self) -> int | None:
        return self.response.length

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the bytes as they arrive. Raises `AgentUnreachable` if they break off."""
        async with watched_response(self.engine, self.vm_id, self.response) as response:
            async for chunk in response.stream():
                yield chunk

    def close(self) -> None:
        """Stop the transfer if it is not complete. Idempotent."""
        self.response.close()


async def read(engine: Engine, ref: str, path: str, *, offset: int = 0, length: int | None = None) -> GuestStream:
    """Read a regular file from ``offset``, at most ``length`` bytes.

    Like all functions here, raises the `FileError` that the guest reports, `WrongState`, `NotFound`,
    `AgentUnreachable`, and `InvalidArgument` for an invalid path.
    """
    files = _files(engine, ref)
    return await _start(engine, ref, files.read(check_path(path), offset=offset, length=length))


async def list_directory(engine: Engine, ref: str, path: str) -> GuestStream:
    """List the entries of a directory, as lines of JSON (protocol/agent.md)."""
    files = _files(engine, ref)
    return await _start(engine, ref, files.list(check_path(path)))


async def watch(engine: Engine, ref: str, path: str, *, recursive: bool) -> GuestStream:
    """Follow the changes in a directory, as lines of JSON (protocol/agent.md)."""
    files = _files(engine, ref)
    return await _start(engine, ref, files.watch(check_path(path), recursive=recursive))


async def read_tar(engine: Engine, ref: str, paths: list[str]) -> GuestStream:
    """Read files and directories, with their contents, as a tar archive."""
    files = _files(engine, ref)
    return await _start(engine, ref, files.read_tar([check_path(path) for path in paths]))


async def write(
    engine: Engine,
    ref: str,
    path: str,
    body: AsyncIterator[bytes],
    *,
    mode: str | None,
    user: str | None,
    parents: bool,
    mtime_ns: int | None,
) -> FileInfo:
    """Write ``body`` to a file atomically. If ``body`` raises, nothing is left."""
    files, path = _files(engine, ref), check_path(path)

    def send(upload: WatchedUpload) -> Awaitable[FileInfo]:
        return files.write(path, aiter(upload), mode=mode, user=user, parents=parents, mtime_ns=mtime_ns)

    return await watch_upload(engine, _vm_id(engine, ref), body, send)


async def write_tar(
    engine: Engine,
    ref: str,
    path: str,
    body: AsyncIterator[bytes],
    *,
    user: str | None,
    keep_owner: bool,
    create: bool,
) -> dict[str, int]:
    """Unpack a tar archive into a directory; return its numbers of ``entries`` and ``bytes``.

    With ``create`` the directory is new. It appears when the archive is complete, or not at all.
    """
    files, path = _files(engine, ref), check_path(path)

    def send(upload: WatchedUpload) -> Awaitable[dict[str, int]]:
        return files.write_tar(path, aiter(upload), user=user, keep_owner=keep_owner, create=create)

    return await watch_upload(engine, _vm_id(engine, ref), body, send)


async def stat(engine: Engine, ref: str, path: str, *, follow: bool) -> FileInfo:
    """Describe a file; with ``follow``, the target of a symbolic link."""
    return await _files(engine, ref).stat(check_path(path), follow=follow)


async def mkdir(engine: Engine, ref: str, path: str, *, mode: str | None, user: str | None, parents: bool) -> None:
    """Create a directory. With ``parents``, create missing parents too, and accept an existing directory."""
    await _files(engine, ref).mkdir(check_path(path), mode=mode, user=user, parents=parents)


async def rename(engine: Engine, ref: str, source: str, target: str) -> None:
    """Rename a file, replacing an existing one."""
    await _files(engine, ref).rename(check_path(source), check_path(target))


async def remove(engine: Engine, ref: str, path: str, *, recursive: bool) -> None:
    """Remove a file or an empty directory; with ``recursive``, a directory with its contents."""
    await _files(engine, ref).remove(check_path(path), recursive=recursive)


def _files(engine: Engine, ref: str) -> AgentFiles:
    return agent_of(engine, ref, "use its files").files


def _vm_id(engine: Engine, ref: str) -> str:
    return engine.store.get_vm(ref).vm_id


async def _start(engine: Engine, ref: str, request: Awaitable[Response]) -> GuestStream:
    try:
        async with asyncio.timeout(_START_TIMEOUT_S):
            response = await request
    except SquibError:
        raise
    except TimeoutError:
        raise AgentTimeout(
            f"the guest did not respond within {_START_TIMEOUT_S:g} s", hint=f"see what it printed: squib logs {ref}"
        ) from None
    return GuestStream(engine, _vm_id(engine, ref), response)
