"""`AsyncFiles`: the files of a VM, for asyncio programs. `squib.VM.files` is its synchronous face."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress

from squib.errors import InvalidArgument, NoSuchFile, NotADirectory
from squib.models import FileInfo, OnProgress
from squib.protocol.guestfiles import GuestPath, parse_info
from squib.sdk.client import EngineClient
from squib.sdk.fileclient import FileClient
from squib.sdk.fileobjects import AsyncFile, Mode, open_async
from squib.sdk.result import Copied
from squib.sdk.transfer import copying
from squib.sdk.transfer.chunks import Data, chunks_of
from squib.sdk.watching import AsyncWatch

MAX_ENTRIES = 1_000_000
"""Of a directory that is listed."""

LocalPath = str | os.PathLike[str]


class AsyncFiles:
    """The files of a VM: `AsyncVM.files`. Everything is done as the guest's root.

        await vm.files.write("/etc/motd", "hello\\n")
        async for chunk in vm.files.stream("/var/log/syslog"):
            ...

    Paths are absolute. They are text, where bytes that are not UTF-8 are lone surrogates (as `os.listdir` has it),
    bytes, or path objects. Symbolic links are followed, but by `remove` and `rename`, which act on the link itself.

    Raises `NoSuchFile`, `NotAFile`, `NotADirectory`, `FileExists`, `DirectoryNotEmpty`, `PermissionDenied`,
    `GuestDiskFull` as the guest says; `InvalidArgument` for what is no path; `TransferFailed` for what breaks off;
    `WrongState` if the VM does not run, `AgentUnreachable` if it is lost.
    """

    def __init__(self, engine: EngineClient, ref: str) -> None:
        self._client = FileClient(engine, ref)

    # --- content ------------------------------------------------------------------------------------------------

    async def read(self, path: GuestPath) -> bytes:
        """All bytes of a file, which are then in memory; see `stream` for large ones."""
        async with aclosing(self._client.read(path)) as chunks:
            return b"".join([chunk async for chunk in chunks])

    async def read_text(self, path: GuestPath, encoding: str = "utf-8", errors: str = "strict") -> str:
        """All of a file as text, with its line ends as they are. Raises `UnicodeDecodeError`."""
        return (await self.read(path)).decode(encoding, errors)

    def stream(self, path: GuestPath, offset: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        """The bytes of a file as they come, from ``offset``, at most ``length``. Who reads slowly slows the guest."""
        return self._client.read(path, offset=offset, length=length)

    async def write(
        self,
        path: GuestPath,
        data: Data,
        mode: int | None = None,
        owner: str | None = None,
        parents: bool = False,
    ) -> FileInfo:
        """Make ``data`` a file, in one step: it has its name when all of it is there. If that fails nothing is changed.

        ``data`` is bytes, text (written as UTF-8), a binary file, or an iterable of bytes, which may be asynchronous;
        it may be of any size. A new file has mode 0644 and belongs to root, one that is replaced keeps both, unless
        ``mode`` or ``owner`` (``name``, ``uid``, ``name:group``, ``uid:gid``) say otherwise. With ``parents``, missing
        directories are made.
        """
        return await self._client.write(path, chunks_of(data), mode=mode, owner=owner, parents=parents)

    async def open(
        self, path: GuestPath, mode: Mode = "r", *, encoding: str = "utf-8", errors: str = "strict"
    ) -> AsyncFile:
        """A file object: ``r`` and ``rb`` read, ``w`` and ``wb`` write; ``b`` is bytes, else text.

            async with await vm.files.open("/tmp/x", "wb") as file:
                await file.write(b"...")

        What is written becomes the file, in one step, when the object is closed; if the block raises, it does not.
        """
        return await open_async(self._client, path, mode, encoding, errors)

    # --- what is there ------------------------------------------------------------------------------------------

    async def list(self, path: GuestPath) -> list[FileInfo]:
        """What is in a directory, by name. Raises `InvalidArgument` for more than a million entries."""
        found = []
        async with aclosing(self._client.lines("list", path)) as lines:
            async for line in lines:
                found.append(parse_info(line))
                if len(found) > MAX_ENTRIES:
                    raise InvalidArgument(f"{path!r} has more than {MAX_ENTRIES} entries")
        return sorted(found, key=lambda info: info.name)

    async def stat(self, path: GuestPath, follow_symlinks: bool = True) -> FileInfo:
        """A file's description."""
        return await self._client.stat(path, follow=follow_symlinks)

    async def exists(self, path: GuestPath) -> bool:
        """Whether there is something, as `os.path.exists`: a link that leads nowhere is not."""
        with suppress(NoSuchFile, NotADirectory):
            await self._client.stat(path)
            return True
        return False

    # --- changes ------------------------------------------------------------------------------------------------

    async def mkdir(
        self, path: GuestPath, parents: bool = False, mode: int | None = None, owner: str | None = None
    ) -> None:
        """Make a directory, with mode 0755 unless ``mode`` says otherwise. With ``parents``, missing ones above it are
        made, and one that exists is no error.
        """
        await self._client.mkdir(path, parents=parents, mode=mode, owner=owner)

    async def remove(self, path: GuestPath, recursive: bool = False, missing_ok: bool = False) -> None:
        """Remove a file, a link or an empty directory; with ``recursive``, a directory and all that is in it."""
        with suppress(*((NoSuchFile,) if missing_ok else ())):
            await self._client.remove(path, recursive=recursive)

    async def rename(self, source: GuestPath, target: GuestPath) -> None:
        """Give a file the path ``target``. What is there is replaced: a file, or an empty directory by a directory."""
        await self._client.rename(source, target)

    def watch(self, path: GuestPath, recursive: bool = False) -> AsyncWatch:
        """What happens in a directory, as `FileEvent`; with ``recursive``, in all that are below it too.

        async with vm.files.watch("/srv") as events:     # here it begins
            async for event in events:
                print(event.type, event.path)
        """
        return AsyncWatch(self._client.lines("watch", path, recursive=recursive))

    # --- to and from this machine -------------------------------------------------------------------------------

    async def upload(
        self,
        source: LocalPath | Sequence[LocalPath],
        target: GuestPath,
        owner: str | None = None,
        mode: int | None = None,
        keep_owner: bool = False,
        on_progress: OnProgress | None = None,
    ) -> Copied:
        """Copy files and directories of this machine into the guest, as ``cp -r`` does.

        - If ``target`` is a directory, each source goes into it under its own name; a directory that is there already
          is merged with.
        - Else the one source becomes ``target``, whose directory must exist. Several sources need a directory, and a
          ``target`` with a slash at its end must be one unless the source is.
        - A source that ends with ``/.`` stands for what is in that directory: it goes straight into ``target``.
        - A source that is a symbolic link is followed. Links in directories are copied as links.

        Permission bits and times are kept; a ``mode`` replaces those of files that are named as a source (not of what
        is in directories). All belongs to root, to ``owner``, or with ``keep_owner`` to the numbers that it has here.

        Each file appears in one step, and so does a directory that is new: what breaks off leaves nothing of it.
        ``on_progress`` is told of the bytes of each source. Sockets and devices are left out, which the answer tells.
        Raises, besides what the guest says, `NoSuchFile` and
        `PermissionDenied` for what cannot be read here.
        """
        return await copying.upload(
            self._client, source, target, owner=owner, mode=mode, keep_owner=keep_owner, on_progress=on_progress
        )

    async def download(
        self,
        source: GuestPath | Sequence[GuestPath],
        target: LocalPath,
        keep_owner: bool = False,
        unsafe_links: bool = False,
        on_progress: OnProgress | None = None,
    ) -> Copied:
        """Copy files and directories of the guest to this machine, by the rules of `upload`.

        What the guest sends is not trusted: nothing lands outside ``target``. Devices, FIFOs, and links that lead out
        of it (unless ``unsafe_links``) are refused with `ArchiveRefused`; set-id bits are dropped. All belongs to the
        caller, or with ``keep_owner``, which needs root, to the numbers that it has in the guest.

        Raises `DiskFull`, `NoSuchFile` and `PermissionDenied` for this machine's files too.
        """
        return await copying.download(
            self._client,
            source,
            target,
            keep_owner=keep_owner,
            unsafe_links=unsafe_links,
            on_progress=on_progress,
        )
