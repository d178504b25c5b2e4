"""A VM's files, for asyncio programs: `AsyncFiles`.

`Files` is the synchronous version.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress

from squib.errors import InvalidArgument, NoSuchFile, NotADirectory
from squib.models import FileInfo, OnProgress
from squib.protocol.guestfiles import GuestPath, parse_info
from squib.sdk.client import EngineClient
from squib.sdk.fileclient import FileClient
from squib.sdk.fileobjects import AsyncFile, Mode, open_async
from squib.sdk.result import CopyResult
from squib.sdk.transfer.chunks import Data, chunks_of
from squib.sdk.transfer.download import download
from squib.sdk.transfer.targets import LocalPath
from squib.sdk.transfer.upload import upload
from squib.sdk.watching import AsyncWatch

MAX_ENTRIES = 1_000_000
"""The most entries that `AsyncFiles.list` returns."""


class AsyncFiles:
    """The VM's files; get it from `AsyncVM.files`.

        await vm.files.write("/etc/motd", "hello\\n")
        async for chunk in vm.files.stream("/var/log/syslog"):
            ...

    Methods act with the rights of ``user``, by default the VM's user (`VMConfig`), which is root unless set. What they
    create belongs to that user. A relative path begins in the VM's working directory, or in the home of ``user``.

    A path is a string (with surrogate escapes for bytes that are not UTF-8, as in
    `os.listdir`), bytes, or a path object. Methods follow symbolic links, except `remove` and `rename`, which act on
    the link itself.

    Methods raise the error that the guest reports: `NoSuchFile`, `NotAFile`, `NotADirectory`, `FileExists`,
    `DirectoryNotEmpty`, `PermissionDenied` or `GuestDiskFull`. They also raise `InvalidArgument` for an invalid path,
    `TransferFailed` if a transfer is interrupted, `WrongState` if the VM is not running, and `AgentUnreachable` if the
    VM stops responding.
    """

    def __init__(self, engine: EngineClient, ref: str) -> None:
        self._client = FileClient(engine, ref)

    # --- content ------------------------------------------------------------------------------------------------

    async def read(
        self, path: GuestPath, offset: int = 0, length: int | None = None, *, user: str | None = None
    ) -> bytes:
        """Read at most ``length`` bytes of a file, starting at ``offset``.

        Use `stream`, `open` or `download` for large files.

        Raises `InvalidArgument` if there are more than 256 MiB and no ``length`` is given.
        """
        return await self._client.acting_as(user).read_all(path, offset=offset, length=length)

    async def read_text(
        self, path: GuestPath, encoding: str = "utf-8", errors: str = "strict", *, user: str | None = None
    ) -> str:
        """Read a whole file as text, without newline translation.

        ``encoding`` and ``errors`` are as in `bytes.decode`.

        Raises `UnicodeDecodeError`, and the errors of `read`.
        """
        return (await self.read(path, user=user)).decode(encoding, errors)

    def stream(
        self, path: GuestPath, offset: int = 0, length: int | None = None, *, user: str | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Yield at most ``length`` bytes of a file in chunks, from ``offset``.

        By default, yield the whole file. The guest sends only as fast as the caller reads.
        """
        return self._client.acting_as(user).read(path, offset=offset, length=length)

    async def write(
        self,
        path: GuestPath,
        data: Data,
        mode: int | None = None,
        owner: str | None = None,
        parents: bool = True,
        *,
        user: str | None = None,
    ) -> FileInfo:
        """Write a file atomically. If the write fails, nothing changes.

        - ``data``: bytes, text (written as UTF-8), a binary file object, or a synchronous or asynchronous iterable of
          bytes. The size is not limited.
        - ``mode``: the permission bits. By default, 0644 for a new file; an existing file keeps its mode.
        - ``owner``: ``name``, ``uid``, ``name:group`` or ``uid:gid``. By default, ``user`` for a new file; an existing
          file keeps its owner if ``user`` may give files away (root).
        - ``parents``: create missing directories, with the same owner. Otherwise they raise `NoSuchFile`.
        """
        return await self._client.acting_as(user).write(path, chunks_of(data), mode=mode, owner=owner, parents=parents)

    async def open(
        self,
        path: GuestPath,
        mode: Mode = "r",
        *,
        encoding: str = "utf-8",
        errors: str = "strict",
        user: str | None = None,
    ) -> AsyncFile:
        """Open a file: ``r`` and ``rb`` read, ``w`` and ``wb`` write.

            async with await vm.files.open("/tmp/x", "wb") as file:
                await file.write(b"...")

        ``r`` and ``w`` use text with ``encoding`` and ``errors``; ``rb`` and ``wb`` use bytes. A written file appears
        atomically when it is closed, with missing parent directories. If the block raises, the file is not written.
        """
        return await open_async(self._client.acting_as(user), path, mode, encoding, errors)

    # --- listing and metadata -----------------------------------------------------------------------------------

    async def list(self, path: GuestPath, *, user: str | None = None) -> list[FileInfo]:
        """List a directory's entries, sorted by name.

        Raises `InvalidArgument` if there are more than a million entries.
        """
        found = []
        async with aclosing(self._client.acting_as(user).lines("list", path)) as lines:
            async for line in lines:
                found.append(parse_info(line))
                if len(found) > MAX_ENTRIES:
                    raise InvalidArgument(f"{path!r} has more than {MAX_ENTRIES} entries")
        return sorted(found, key=lambda info: info.name)

    async def stat(self, path: GuestPath, follow_symlinks: bool = True, *, user: str | None = None) -> FileInfo:
        """Return a file's metadata.

        Without ``follow_symlinks``, a symbolic link is not followed.
        """
        return await self._client.acting_as(user).stat(path, follow=follow_symlinks)

    async def exists(self, path: GuestPath, *, user: str | None = None) -> bool:
        """Return whether ``path`` exists.

        As with `os.path.exists`, a broken symbolic link does not exist.
        """
        with suppress(NoSuchFile, NotADirectory):
            await self._client.acting_as(user).stat(path)
            return True
        return False

    # --- changes ------------------------------------------------------------------------------------------------

    async def mkdir(
        self,
        path: GuestPath,
        parents: bool = False,
        mode: int | None = None,
        owner: str | None = None,
        *,
        user: str | None = None,
    ) -> None:
        """Create a directory, by default with mode 0755 and owned by ``user``.

        With ``parents``, create missing parent directories and accept an existing directory.
        """
        await self._client.acting_as(user).mkdir(path, parents=parents, mode=mode, owner=owner)

    async def remove(
        self, path: GuestPath, recursive: bool = False, missing_ok: bool = False, *, user: str | None = None
    ) -> None:
        """Remove a file, a symbolic link or an empty directory.

        With ``recursive``, remove a directory and its contents. With ``missing_ok``, ignore a missing file.
        """
        with suppress(*((NoSuchFile,) if missing_ok else ())):
            await self._client.acting_as(user).remove(path, recursive=recursive)

    async def rename(self, source: GuestPath, target: GuestPath, *, user: str | None = None) -> None:
        """Rename a file or directory to ``target``.

        An existing file is replaced. A directory replaces an empty directory.
        """
        await self._client.acting_as(user).rename(source, target)

    def watch(self, path: GuestPath, recursive: bool = False, *, user: str | None = None) -> AsyncWatch:
        """Watch a directory and yield a `FileEvent` for each change.

        With ``recursive``, also watch all directories below it.

        async with vm.files.watch("/srv") as events:  # the watch starts here
            async for event in events:
                print(event.type, event.path)
        """
        return AsyncWatch(self._client.acting_as(user).lines("watch", path, recursive=recursive))

    # --- upload and download ------------------------------------------------------------------------------------

    async def upload(
        self,
        source: LocalPath | Sequence[LocalPath],
        target: GuestPath,
        owner: str | None = None,
        mode: int | None = None,
        keep_owner: bool = False,
        on_progress: OnProgress | None = None,
        *,
        parents: bool = True,
        user: str | None = None,
    ) -> CopyResult:
        """Copy local files and directories into the guest, as ``cp -r`` does.

        - If ``target`` is a directory, each source is copied into it under its own name. Existing directories are
          merged.
        - Otherwise ``target`` is the name of the copy. Missing parent directories are created, unless ``parents`` is
          false. Multiple sources require a directory. If ``target`` ends with a slash, it must be a directory, unless
          the source is one.
        - If a source ends with ``/.``, the contents of that directory are copied into ``target``.
        - A source that is a symbolic link is followed. Links inside directories are copied as links.

        Permission bits and times are preserved. ``mode`` sets the permission bits of files given as a source, but not
        of files inside directories. The copies belong to ``user`` by default, to ``owner``, or with ``keep_owner`` to
        the same numeric user and group as the source. ``keep_owner`` also keeps ``user.*`` extended attributes.

        Each file and each new directory appears atomically: an interrupted copy leaves no part of it. ``on_progress``
        reports the bytes copied for each source. Sockets and devices are skipped and listed in
        `CopyResult.left_out`.

        Raises the guest's errors, and `NoSuchFile` or `PermissionDenied` if a local file cannot be read.
        """
        return await upload(
            self._client.acting_as(user),
            source,
            target,
            owner=owner,
            mode=mode,
            keep_owner=keep_owner,
            parents=parents,
            on_progress=on_progress,
        )

    async def download(
        self,
        source: GuestPath | Sequence[GuestPath],
        target: LocalPath,
        keep_owner: bool = False,
        unsafe_links: bool = False,
        on_progress: OnProgress | None = None,
        *,
        user: str | None = None,
    ) -> CopyResult:
        """Copy files and directories from the guest to this machine.

        Sources and ``target`` follow the rules of `upload`. The guest is not trusted: nothing is written outside
        ``target``. Devices, FIFOs, and links that point outside ``target`` are rejected with `ArchiveRefused`;
        ``unsafe_links`` allows such links. Set-user-ID and set-group-ID bits are cleared. The copies belong to the
        caller, or with ``keep_owner`` (requires root) to the same numeric user and group as in the guest; their
        ``user.*`` extended attributes are then kept too.

        Raises the guest's errors, and `DiskFull`, `NoSuchFile` or `PermissionDenied` for local files.
        """
        return await download(
            self._client.acting_as(user),
            source,
            target,
            keep_owner=keep_owner,
            unsafe_links=unsafe_links,
            on_progress=on_progress,
        )
