"""Copy local files and directories to a guest.

`AsyncFiles.upload` documents the rules.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from squib.errors import NotAFile
from squib.host.files import open_regular
from squib.models import FileType, OnProgress
from squib.protocol.guestfiles import GuestPath, check_path
from squib.sdk.fileclient import FileClient
from squib.sdk.result import CopyResult
from squib.sdk.transfer.chunks import CHUNK_BYTES, blocking, in_thread
from squib.sdk.transfer.localfiles import escaped, local_errors
from squib.sdk.transfer.pack import Packing, measure, read_xattrs
from squib.sdk.transfer.targets import (
    Counter,
    LocalPath,
    Named,
    check_owner,
    counted,
    is_new_directory,
    refuse_slash,
    stat_or_none,
    targets,
)


async def upload(
    client: FileClient,
    source: LocalPath | Sequence[LocalPath],
    target: GuestPath,
    *,
    owner: str | None,
    mode: int | None,
    keep_owner: bool,
    parents: bool,
    on_progress: OnProgress | None,
) -> CopyResult:
    """See `AsyncFiles.upload`."""
    check_owner(owner, keep_owner)
    sources = [source] if isinstance(source, str | os.PathLike) else list(source)
    named = [Named.of(os.fspath(path)) for path in sources]
    kinds = {each.path: await blocking(_look, each.path) for each in named}
    place_of_all = check_path(target)
    there = await stat_or_none(client, place_of_all)
    copied = CopyResult()
    for each, place in targets(named, place_of_all, there is not None and there.type is FileType.DIRECTORY):
        status = kinds[each.path]
        counter = Counter(on_progress, each.path)
        if stat.S_ISDIR(status.st_mode):
            copied += await _upload_tree(client, each, place, owner, keep_owner, parents, counter)
        else:
            refuse_slash(each, place_of_all, place)
            if keep_owner and place != "/" and await blocking(_has_xattrs, each.path):
                copied += await _upload_with_xattrs(client, each, place, mode, parents, counter)
                continue
            owned = f"{status.st_uid}:{status.st_gid}" if keep_owner else owner
            copied += await _upload_file(client, each, place, owned, mode, parents, counter)
    return copied


def _look(path: str) -> os.stat_result:
    with local_errors(path):
        status = os.stat(path)  # noqa: PTH116
    if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
        raise NotAFile(f"{escaped(path)} on this machine is neither a file nor a directory")
    return status


async def _upload_file(
    client: FileClient,
    source: Named,
    place: str,
    owner: str | None,
    mode: int | None,
    parents: bool,
    counter: Counter,
) -> CopyResult:
    file, status = await blocking(_open, source.path)
    with file:
        counter.total = status.st_size
        mode = stat.S_IMODE(status.st_mode) if mode is None else mode
        chunks = counted(in_thread(_read(file, source.path)), counter.add)
        info = await client.write(place, chunks, mode=mode, owner=owner, parents=parents, mtime_ns=status.st_mtime_ns)
    return CopyResult(1, info.size)


def _open(path: str) -> tuple[BinaryIO, os.stat_result]:
    with local_errors(path):
        file = open_regular(Path(path))
        return file, os.fstat(file.fileno())


def _has_xattrs(path: str) -> bool:
    with local_errors(path):
        return bool(read_xattrs(path))


async def _upload_with_xattrs(
    client: FileClient, source: Named, place: str, mode: int | None, parents: bool, counter: Counter
) -> CopyResult:
    """Upload a file as an archive, with owner and extended attributes."""
    there = await stat_or_none(client, place)
    if there is not None and there.type is not FileType.FILE:
        raise NotAFile(f"{escaped(place)} is a {there.type}, not a regular file")
    directory, name = posixpath.split(place)
    directory = directory or "."
    if parents and there is None:
        await client.mkdir(directory, parents=True, mode=None, owner=None)
    file, status = await blocking(_open, source.path)
    with file:
        counter.total = status.st_size
        packing = Packing(source.path, xattrs=True)
        kept = stat.S_IMODE(status.st_mode) if mode is None else mode
        chunks = counted(
            in_thread(packing.file_chunks(file.fileno(), name, kept)), lambda _: counter.reach(packing.bytes)
        )
        await client.write_tar(directory, chunks, owner=None, keep_owner=True, create=False)
    return CopyResult(packing.entries, packing.bytes)


def _read(file: BinaryIO, path: str) -> Iterator[bytes]:
    with local_errors(path):
        while data := os.read(file.fileno(), CHUNK_BYTES):
            yield data


async def _upload_tree(
    client: FileClient,
    source: Named,
    place: str,
    owner: str | None,
    keep_owner: bool,
    parents: bool,
    counter: Counter,
) -> CopyResult:
    create = await is_new_directory(client, source, place)
    if counter.on_progress:
        counter.total = await blocking(measure, source.path)
    packing = Packing(source.path, xattrs=keep_owner)
    chunks = counted(in_thread(packing.chunks()), lambda size: counter.reach(packing.bytes))
    await client.write_tar(place, chunks, owner=owner, keep_owner=keep_owner, create=create, parents=parents and create)
    return CopyResult(packing.entries, packing.bytes, tuple(packing.left_out))
