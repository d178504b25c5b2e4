"""Copy files and directories from one guest to another.

`AsyncFiles.upload` documents the rules.
"""

from __future__ import annotations

from collections.abc import Sequence

from squib.models import FileType, OnProgress
from squib.protocol.guestfiles import GuestPath, check_path
from squib.sdk.fileclient import FileClient
from squib.sdk.result import CopyResult
from squib.sdk.transfer.repack import repacked
from squib.sdk.transfer.targets import (
    PERMISSIONS,
    Counter,
    Named,
    check_owner,
    counted,
    is_new_directory,
    refuse_slash,
    stat_or_none,
    stat_to_copy,
    targets,
)


async def relay(
    source: FileClient,
    paths: Sequence[GuestPath],
    destination: FileClient,
    target: GuestPath,
    *,
    owner: str | None,
    mode: int | None,
    keep_owner: bool,
    parents: bool = True,
    on_progress: OnProgress | None,
) -> CopyResult:
    """Copy files and directories from one VM to another through this process.

    The rules are as for `AsyncFiles.upload`. Archives are rewritten (`squib.sdk.transfer.repack`), because the
    destination must not trust the source.
    """
    check_owner(owner, keep_owner)
    named = [Named.of(check_path(path)) for path in paths]
    place_of_all = check_path(target)
    infos = {each.path: await stat_to_copy(source, each.path) for each in named}
    there = await stat_or_none(destination, place_of_all)
    copied = CopyResult()
    for each, place in targets(named, place_of_all, there is not None and there.type is FileType.DIRECTORY):
        info = infos[each.path]
        counter = Counter(on_progress, each.path)
        if info.type is FileType.DIRECTORY:
            create = await is_new_directory(destination, each, place)
            chunks = repacked(counted(source.read_tar(f"{each.path.rstrip('/')}/.", xattrs=keep_owner), counter.add))
            copied += await destination.write_tar(
                place, chunks, owner=owner, keep_owner=keep_owner, create=create, parents=parents and create
            )
        else:
            refuse_slash(each, place_of_all, place)
            counter.total = info.size
            owned = f"{info.uid}:{info.gid}" if keep_owner else owner
            kept = info.mode & PERMISSIONS if mode is None else mode
            chunks = counted(source.read(each.path), counter.add)
            written = await destination.write(
                place, chunks, mode=kept, owner=owned, parents=parents, mtime_ns=info.mtime_ns
            )
            copied += CopyResult(1, written.size)
    return copied
