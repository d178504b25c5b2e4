"""``files``: the files of a running VM.

Contents are forwarded as they arrive, unread, in both directions.
"""

from __future__ import annotations

import posixpath
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass

from squib.core.engine import Engine
from squib.core.guestio.exec import running_vm, within_timeout
from squib.core.guestio.stall import WatchedUpload, watch_upload, watched_response
from squib.guest.files import AgentFiles
from squib.guest.response import Response
from squib.models import Account, FileInfo
from squib.protocol.guestfiles import check_path
from squib.store.records import VMRecord

_START_TIMEOUT_S = 60.0
"""Until a response begins: the guest may have to read a large directory first."""


@dataclass(frozen=True)
class GuestStream:
    """Bytes that a guest sends.

    ``length`` is their number if it is known in advance.
    """

    engine: Engine
    vm_id: str
    response: Response

    @property
    def length(self) -> int | None:
        return self.response.length

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the bytes as they arrive.

        Raises `AgentUnreachable` if they break off.
        """
        async with watched_response(self.engine, self.vm_id, self.response) as response:
            async for chunk in response.stream():
                yield chunk

    def close(self) -> None:
        """Stop the transfer if it is not complete. Idempotent."""
        self.response.close()


async def read(
    engine: Engine, ref: str, path: str, *, offset: int = 0, length: int | None = None, as_user: str | None = None
) -> GuestStream:
    """Read a regular file from ``offset``, at most ``length`` bytes.

    All functions here act with the rights of ``as_user``, by default of the VM's user. Relative paths begin in the VM's
    working directory, or in the home of the acting user. They raise the `FileError` that the guest reports,
    `NoSuchUser`, `WrongState`, `NotFound`, `AgentUnreachable`, and `InvalidArgument` for an invalid path.
    """
    vm = _acting(engine, ref, as_user)
    return await _start(engine, vm, vm.files.read(vm.resolve(path), offset=offset, length=length))


async def list_directory(engine: Engine, ref: str, path: str, *, as_user: str | None = None) -> GuestStream:
    """List a directory's entries, as lines of JSON (protocol/agent.md)."""
    vm = _acting(engine, ref, as_user)
    return await _start(engine, vm, vm.files.list(vm.resolve(path)))


async def watch(engine: Engine, ref: str, path: str, *, recursive: bool, as_user: str | None = None) -> GuestStream:
    """Follow the changes in a directory, as JSON lines (protocol/agent.md)."""
    vm = _acting(engine, ref, as_user)
    return await _start(engine, vm, vm.files.watch(vm.resolve(path), recursive=recursive))


async def read_tar(
    engine: Engine, ref: str, paths: list[str], *, xattrs: bool = False, as_user: str | None = None
) -> GuestStream:
    """Read files and directories, with their contents, as a tar archive.

    With ``xattrs``, it holds the extended attributes of the ``user`` namespace too.
    """
    vm = _acting(engine, ref, as_user)
    return await _start(engine, vm, vm.files.read_tar([vm.resolve(path) for path in paths], xattrs=xattrs))


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
    as_user: str | None = None,
) -> FileInfo:
    """Write ``body`` to a file atomically.

    If ``body`` raises, nothing is left.
    """
    vm = _acting(engine, ref, as_user)
    path = vm.resolve(path)

    def send(upload: WatchedUpload) -> Awaitable[FileInfo]:
        return vm.files.write(path, aiter(upload), mode=mode, user=user, parents=parents, mtime_ns=mtime_ns)

    return await watch_upload(engine, vm.record.vm_id, body, send)


async def write_tar(
    engine: Engine,
    ref: str,
    path: str,
    body: AsyncIterator[bytes],
    *,
    user: str | None,
    keep_owner: bool,
    create: bool,
    parents: bool = False,
    as_user: str | None = None,
) -> dict[str, int]:
    """Unpack a tar archive into the directory ``path``.

    Returns how many ``entries`` and ``bytes`` were unpacked. With ``create``, the directory is new. It appears when the
    archive is complete, or not at all. With ``parents`` too, missing parent directories are created.
    """
    vm = _acting(engine, ref, as_user)
    path = vm.resolve(path)

    def send(upload: WatchedUpload) -> Awaitable[dict[str, int]]:
        return vm.files.write_tar(path, aiter(upload), user=user, keep_owner=keep_owner, create=create, parents=parents)

    return await watch_upload(engine, vm.record.vm_id, body, send)


async def stat(engine: Engine, ref: str, path: str, *, follow: bool, as_user: str | None = None) -> FileInfo:
    """Describe a file; with ``follow``, the target of a symbolic link."""
    vm = _acting(engine, ref, as_user)
    return await vm.files.stat(vm.resolve(path), follow=follow)


async def mkdir(
    engine: Engine,
    ref: str,
    path: str,
    *,
    mode: str | None,
    user: str | None,
    parents: bool,
    as_user: str | None = None,
) -> None:
    """Create a directory.

    With ``parents``, create missing parents too, and accept an existing directory.
    """
    vm = _acting(engine, ref, as_user)
    await vm.files.mkdir(vm.resolve(path), mode=mode, user=user, parents=parents)


async def rename(engine: Engine, ref: str, source: str, target: str, *, as_user: str | None = None) -> None:
    """Rename a file, replacing an existing one."""
    vm = _acting(engine, ref, as_user)
    await vm.files.rename(vm.resolve(source), vm.resolve(target))


async def remove(engine: Engine, ref: str, path: str, *, recursive: bool, as_user: str | None = None) -> None:
    """Remove a file or an empty directory.

    With ``recursive``, removes a directory with its contents.
    """
    vm = _acting(engine, ref, as_user)
    await vm.files.remove(vm.resolve(path), recursive=recursive)


async def account(engine: Engine, ref: str, user: str | None) -> Account:
    """Describe a user of the guest, by default the VM's user.

    Raises `NoSuchUser`, `WrongState`, `NotFound`.
    """
    record, agent = running_vm(engine, ref, "look up its users")
    return await agent.account(user or record.spec.user)


@dataclass(frozen=True)
class _Acting:
    """The files of a running VM, used by one of its users."""

    record: VMRecord
    files: AgentFiles

    def resolve(self, path: str) -> str:
        """Return a path as the guest gets it.

        The guest resolves relative paths if the VM has no working directory.
        """
        return check_path(posixpath.join(self.record.spec.cwd or "", check_path(path)))


def _acting(engine: Engine, ref: str, as_user: str | None) -> _Acting:
    record, agent = running_vm(engine, ref, "use its files")
    return _Acting(record, agent.files.acting_as(as_user or record.spec.user))


async def _start(engine: Engine, vm: _Acting, request: Awaitable[Response]) -> GuestStream:
    response = await within_timeout(request, vm.record.name, "respond", _START_TIMEOUT_S)
    return GuestStream(engine, vm.record.vm_id, response)
