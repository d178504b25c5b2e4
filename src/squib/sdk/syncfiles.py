"""A VM's files: `Files`, the synchronous version of `AsyncFiles`."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import IO, Any

from squib.models import FileInfo, OnProgress
from squib.protocol.guestfiles import GuestPath
from squib.sdk.fileobjects import Mode, open_sync
from squib.sdk.files import AsyncFiles
from squib.sdk.portal import Portal
from squib.sdk.result import CopyResult
from squib.sdk.transfer.chunks import Data
from squib.sdk.transfer.targets import LocalPath
from squib.sdk.watching import Watch


class Files:
    """The VM's files; get it from `VM.files`.

    See `AsyncFiles` for paths and errors.

    vm.files.write("/etc/motd", "hello\\n")
    with vm.files.open("/var/log/syslog") as file:
        for line in file:
            ...
    """

    def __init__(self, portal: Portal, files: AsyncFiles) -> None:
        self._portal = portal
        self._files = files

    def read(self, path: GuestPath, offset: int = 0, length: int | None = None, *, user: str | None = None) -> bytes:
        """See `AsyncFiles.read`."""
        return self._portal.run(self._files.read(path, offset, length, user=user))

    def read_text(
        self, path: GuestPath, encoding: str = "utf-8", errors: str = "strict", *, user: str | None = None
    ) -> str:
        """See `AsyncFiles.read_text`."""
        return self._portal.run(self._files.read_text(path, encoding, errors, user=user))

    def stream(
        self, path: GuestPath, offset: int = 0, length: int | None = None, *, user: str | None = None
    ) -> Generator[bytes, None, None]:
        """See `AsyncFiles.stream`."""
        return self._portal.iterate(self._files.stream(path, offset, length, user=user))

    def write(
        self,
        path: GuestPath,
        data: Data,
        mode: int | None = None,
        owner: str | None = None,
        parents: bool = True,
        *,
        user: str | None = None,
    ) -> FileInfo:
        """See `AsyncFiles.write`.

        Files and iterables are read on another thread.
        """
        return self._portal.run(self._files.write(path, data, mode, owner, parents, user=user))

    def open(
        self,
        path: GuestPath,
        mode: Mode = "r",
        *,
        encoding: str = "utf-8",
        errors: str = "strict",
        user: str | None = None,
    ) -> IO[Any]:
        """Open a file as an `io` object, for reading or for writing.

        ``r`` and ``rb`` read, ``w`` and ``wb`` write. ``r`` and ``w`` use text with ``encoding`` and ``errors``; ``rb``
        and ``wb`` use bytes. Files opened for reading are seekable; files opened for writing are not. A written file
        appears atomically when it is closed, with missing parent directories. If the ``with`` block raises, the file is
        not written.
        """
        return open_sync(self._portal, self._files._client.acting_as(user), path, mode, encoding, errors)

    def list(self, path: GuestPath, *, user: str | None = None) -> list[FileInfo]:
        """See `AsyncFiles.list`."""
        return self._portal.run(self._files.list(path, user=user))

    def stat(self, path: GuestPath, follow_symlinks: bool = True, *, user: str | None = None) -> FileInfo:
        """See `AsyncFiles.stat`."""
        return self._portal.run(self._files.stat(path, follow_symlinks, user=user))

    def exists(self, path: GuestPath, *, user: str | None = None) -> bool:
        """See `AsyncFiles.exists`."""
        return self._portal.run(self._files.exists(path, user=user))

    def mkdir(
        self,
        path: GuestPath,
        parents: bool = False,
        mode: int | None = None,
        owner: str | None = None,
        *,
        user: str | None = None,
    ) -> None:
        """See `AsyncFiles.mkdir`."""
        self._portal.run(self._files.mkdir(path, parents, mode, owner, user=user))

    def remove(
        self, path: GuestPath, recursive: bool = False, missing_ok: bool = False, *, user: str | None = None
    ) -> None:
        """See `AsyncFiles.remove`."""
        self._portal.run(self._files.remove(path, recursive, missing_ok, user=user))

    def rename(self, source: GuestPath, target: GuestPath, *, user: str | None = None) -> None:
        """See `AsyncFiles.rename`."""
        self._portal.run(self._files.rename(source, target, user=user))

    def watch(self, path: GuestPath, recursive: bool = False, *, user: str | None = None) -> Watch:
        """See `AsyncFiles.watch`. The watch is active when this returns."""
        return Watch(self._portal, self._files.watch(path, recursive, user=user))

    def upload(
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
        """See `AsyncFiles.upload`. ``on_progress`` runs on squib's thread."""
        return self._portal.run(
            self._files.upload(source, target, owner, mode, keep_owner, on_progress, parents=parents, user=user)
        )

    def download(
        self,
        source: GuestPath | Sequence[GuestPath],
        target: LocalPath,
        keep_owner: bool = False,
        unsafe_links: bool = False,
        on_progress: OnProgress | None = None,
        *,
        user: str | None = None,
    ) -> CopyResult:
        """See `AsyncFiles.download`.

        ``on_progress`` runs on squib's thread.
        """
        return self._portal.run(self._files.download(source, target, keep_owner, unsafe_links, on_progress, user=user))
