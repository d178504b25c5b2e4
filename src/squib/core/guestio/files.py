"""``files``: the files of a running VM. What streams is passed on as it comes, unread, in both directions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass

from squib.core.engine import Engine
from squib.core.guestio.exec import agent_of
from squib.core.guestio.stall import Feeding, answer_of, fed
from squib.errors import AgentUnreachable
from squib.guest.files import AgentFiles
from squib.guest.http2 import Response
from squib.models import FileInfo
from squib.protocol.guestfiles import check_path

_START_TIMEOUT_S = 60.0
"""Until an answer begins: the guest may have much to look at before."""


@dataclass(frozen=True)
class GuestStream:
    """Bytes that a guest sends. `length` is how many, where it is known before."""

    engine: Engine
    vm_id: str
    response: Response

    @property
    def length(self) -> int | None:
        return self.response.length

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes, as they come. Raises `AgentUnreachable` if they break off."""
        async with answer_of(self.engine, self.vm_id, self.response) as response:
            async for chunk in response.stream():
                yield chunk

    def close(self) -> None:
        """Stop the guest, if it has not sent all. Idempotent."""
        self.response.close()


async def read(engine: Engine, ref: str, path: str, *, offset: int = 0, length: int | None = None) -> GuestStream:
    """A regular file's bytes from ``offset``, at most ``length``.

    As all here, raises the `FileError` that the guest names, `WrongState`, `NotFound`, `AgentUnreachable`, and
    `InvalidArgument` for a path that is none.
    """
    files = _files(engine, ref)
    return await _start(engine, ref, files.read(check_path(path), offset=offset, length=length))


async def list_directory(engine: Engine, ref: str, path: str) -> GuestStream:
    """The entries of a directory, as lines of JSON (protocol/agent.md)."""
    files = _files(engine, ref)
    return await _start(engine, ref, files.list(check_path(path)))


async def watch(engine: Engine, ref: str, path: str, *, recursive: bool) -> GuestStream:
    """What happens in a directory, as lines of JSON (protocol/agent.md)."""
    files = _files(engine, ref)
    return await _start(engine, ref, files.watch(check_path(path), recursive=recursive))


async def read_tar(engine: Engine, ref: str, paths: list[str]) -> GuestStream:
    """Files and directories with all below them, as a tar."""
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
    """Make ``body`` a file, in one step. If ``body`` raises, nothing of it stays."""
    files, path = _files(engine, ref), check_path(path)

    def send(feeding: Feeding) -> Awaitable[FileInfo]:
        return files.write(path, aiter(feeding), mode=mode, user=user, parents=parents, mtime_ns=mtime_ns)

    return await fed(engine, _vm_id(engine, ref), body, send)


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
    """Unpack a tar below a directory; how many entries and bytes it had. With ``create`` the directory appears with the
    last of them, or not at all.
    """
    files, path = _files(engine, ref), check_path(path)

    def send(feeding: Feeding) -> Awaitable[dict[str, int]]:
        return files.write_tar(path, aiter(feeding), user=user, keep_owner=keep_owner, create=create)

    return await fed(engine, _vm_id(engine, ref), body, send)


async def stat(engine: Engine, ref: str, path: str, *, follow: bool) -> FileInfo:
    """A file's description. ``follow``: that of what a symbolic link leads to."""
    return await _files(engine, ref).stat(check_path(path), follow=follow)


async def mkdir(engine: Engine, ref: str, path: str, *, mode: str | None, user: str | None, parents: bool) -> None:
    """Make a directory; with ``parents``, those above it too, and one that exists is no error."""
    await _files(engine, ref).mkdir(check_path(path), mode=mode, user=user, parents=parents)


async def rename(engine: Engine, ref: str, source: str, target: str) -> None:
    """Give a file another name; a file of that name is replaced."""
    await _files(engine, ref).rename(check_path(source), check_path(target))


async def remove(engine: Engine, ref: str, path: str, *, recursive: bool) -> None:
    """Remove a file or an empty directory; with ``recursive``, all that is in it."""
    await _files(engine, ref).remove(check_path(path), recursive=recursive)


def _files(engine: Engine, ref: str) -> AgentFiles:
    return agent_of(engine, ref, "use its files").files


def _vm_id(engine: Engine, ref: str) -> str:
    return engine.store.get_vm(ref).vm_id


async def _start(engine: Engine, ref: str, request: Awaitable[Response]) -> GuestStream:
    try:
        async with asyncio.timeout(_START_TIMEOUT_S):
            response = await request
    except TimeoutError:
        raise AgentUnreachable(
            f"the guest did not answer within {_START_TIMEOUT_S:g} s", hint=f"does it hang? squib logs {ref}"
        ) from None
    return GuestStream(engine, _vm_id(engine, ref), response)
