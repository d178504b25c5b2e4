"""Names, places and progress of uploads, downloads and relays."""

from __future__ import annotations

import os
import posixpath
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from squib.errors import InvalidArgument, NoSuchFile, NotADirectory, NotAFile
from squib.models import FileInfo, FileType, OnProgress, Progress
from squib.sdk.fileclient import FileClient
from squib.sdk.transfer.localfiles import escaped

LocalPath = str | os.PathLike[str]

PERMISSIONS = 0o777
_NAMELESS = ("", ".", "..")


@dataclass
class Counter:
    """Report how many bytes of ``step`` are copied."""

    on_progress: OnProgress | None
    step: str
    total: int | None = None
    done: int = 0

    def add(self, size: int) -> None:
        """Count ``size`` more bytes."""
        self.reach(self.done + size)

    def reach(self, done: int) -> None:
        """Set the count."""
        self.done = done
        if self.on_progress:
            self.on_progress(Progress(step=self.step, done=self.done, total=self.total, unit="bytes"))


@dataclass(frozen=True)
class Named:
    """A source path and its name in a target directory.

    The name is empty if only the contents are copied.
    """

    path: str
    name: str

    @classmethod
    def of(cls, path: str) -> Named:
        """Take the name from a path."""
        name = posixpath.basename(path.rstrip("/"))
        return cls(path, "" if name in _NAMELESS else name)

    def within(self, directory: str) -> str:
        """Return the path of the copy in ``directory``."""
        return posixpath.join(directory, self.name) if self.name else directory


def check_owner(owner: str | None, keep_owner: bool) -> None:
    """Raise `InvalidArgument` if both say who owns the copies."""
    if owner is not None and keep_owner:
        raise InvalidArgument("owner and keep_owner cannot be used together")


def targets(sources: Sequence[Named], target: str, is_directory: bool) -> Iterator[tuple[Named, str]]:
    """Yield each source with its target path."""
    if not sources:
        raise InvalidArgument("nothing to copy: no source given")
    if len(sources) > 1 and not is_directory:
        raise NotADirectory(
            f"{escaped(target)} is not a directory: several sources need a directory as target",
            hint="create the directory first",
        )
    for source in sources:
        yield source, source.within(target) if is_directory else target


def refuse_slash(source: Named, target: str, place: str) -> None:
    """Raise `NotADirectory` for a file copied to a missing ``directory/``."""
    if place == target and target.endswith("/"):
        raise NotADirectory(
            f"cannot copy the file {escaped(source.path)} to {escaped(target)}: the directory does not exist",
            hint="create the directory first",
        )


async def stat_or_none(client: FileClient, path: str) -> FileInfo | None:
    """Return what is at a path of the guest, or ``None``."""
    try:
        return await client.stat(path)
    except NoSuchFile:
        return None


async def stat_to_copy(client: FileClient, path: str) -> FileInfo:
    """Return what is at a path of the guest.

    Raises `NotAFile` if it cannot be copied.
    """
    info = await client.stat(path)
    if info.type not in (FileType.FILE, FileType.DIRECTORY):
        raise NotAFile(f"{escaped(path)} is a {info.type}, neither a file nor a directory")
    return info


async def is_new_directory(client: FileClient, source: Named, place: str) -> bool:
    """Return whether ``place`` is free for a directory.

    Raises `NotADirectory` if something else is there.
    """
    there = await stat_or_none(client, place)
    if there and there.type is not FileType.DIRECTORY:
        raise NotADirectory(
            f"cannot copy the directory {escaped(source.path)} to {escaped(place)}: the target is a {there.type}"
        )
    return there is None


async def counted(chunks: AsyncGenerator[bytes, None], count: Callable[[int], None]) -> AsyncGenerator[bytes, None]:
    """Yield ``chunks``.

    Call ``count`` with 0 first, then with the size of each consumed chunk.
    """
    async with aclosing(chunks):
        count(0)
        async for chunk in chunks:
            yield chunk
            count(len(chunk))
