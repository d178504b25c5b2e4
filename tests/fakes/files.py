"""The files of a fake agent's guest: those below a real directory, and answers that break the rules.

What ``break_off`` names answers with half of what it should and a reset: ``read``, ``list``, ``watch``, ``tar``.
``answers`` are what paths answer instead: a status and a body.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import secrets
import shutil
import stat
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

if TYPE_CHECKING:
    from tests.fakes.agent import Stream, _Session

_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "char_device",
    stat.S_IFBLK: "block_device",
}
_ERRORS: dict[type[OSError], tuple[int, str]] = {
    FileNotFoundError: (404, "no_such_file"),
    FileExistsError: (409, "file_exists"),
    IsADirectoryError: (409, "not_a_file"),
    NotADirectoryError: (409, "not_a_directory"),
    PermissionError: (403, "permission_denied"),
}
_TEMPORARY = ".squib-"


class Refused(Exception):
    """An error answer."""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status, self.code = status, code
        super().__init__(message)


@dataclass
class FakeFiles:
    """The files below ``root``."""

    root: Path
    break_off: str = ""
    answers: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    events: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    stalled: set[str] = field(default_factory=set)
    """Requests (as in ``break_off``, or ``write``) that never end."""
    watching: int = 0
    loop: asyncio.AbstractEventLoop | None = None
    """Where it answers."""
    owners: dict[str, str] = field(default_factory=dict)

    async def answer(self, stream: Stream, session: _Session, stream_id: int) -> None:
        self.loop = asyncio.get_running_loop()
        path, _, query = stream.path.partition("?")
        values = parse_qs(query, keep_blank_values=True, errors="surrogateescape")
        what = path.removeprefix("/v1/files").strip("/")
        named = values.get("path", [""])[0]
        if named in self.answers:
            status, body = self.answers[named]
            session.headers(stream_id, status, "application/json")
            await session.data(stream_id, body, end=True)
            return
        try:
            match stream.method, what:
                case "GET", "":
                    await self._read(named, values, session, stream_id)
                case "PUT", "":
                    await session.send_json(stream_id, 200, await self._write(named, values, stream))
                case "DELETE", "":
                    self._remove(named, recursive="recursive" in values)
                    await session.send_json(stream_id, 204, None)
                case "GET", "stat":
                    info = self._describe(self.at(named), follow=values["follow"] == ["1"])
                    await session.send_json(stream_id, 200, info | {"name": Path(named).name or "/"})
                case "GET", "list":
                    await self._list(named, session, stream_id)
                case "POST", "mkdir":
                    body = json.loads(await stream.read())
                    self.at(body["path"]).mkdir(
                        int(body.get("mode", "755"), 8), body.get("parents", False), body.get("parents", False)
                    )
                    self.owners[body["path"]] = body.get("user", "")
                    await session.send_json(stream_id, 204, None)
                case "POST", "rename":
                    body = json.loads(await stream.read())
                    self.at(body["from"]).rename(self.at(body["to"]))
                    await session.send_json(stream_id, 204, None)
                case "GET", "watch":
                    await self._watch(named, session, stream_id)
                case "GET", "tar":
                    await self._read_tar(values["path"], session, stream_id)
                case "PUT", "tar":
                    await session.send_json(stream_id, 200, await self._write_tar(named, values, stream))
        except OSError as error:
            status, code = _ERRORS.get(type(error), (500, "internal"))
            raise Refused(status, code, f"{named}: {error.strerror}") from error

    def at(self, path: str) -> Path:
        """Where a file of the guest is on this machine."""
        assert path.startswith("/")
        return self.root / path.lstrip("/")

    def left_over(self) -> list[Path]:
        """Temporary files that nobody has removed."""
        return [path for path in self.root.rglob("*") if path.name.startswith(_TEMPORARY)]

    def _describe(self, path: Path, *, follow: bool) -> dict[str, Any]:
        status = path.stat(follow_symlinks=follow)
        kind = _TYPES[stat.S_IFMT(status.st_mode)]
        return {
            "name": path.name,
            "type": kind,
            "size": status.st_size,
            "mode": stat.S_IMODE(status.st_mode),
            "uid": status.st_uid,
            "gid": status.st_gid,
            "user": "root",
            "group": None,
            "mtime_ns": status.st_mtime_ns,
            "link_target": os.readlink(path) if kind == "symlink" else None,  # noqa: PTH115
            "of_the_future": 1,
        }

    async def _read(self, named: str, values: dict[str, list[str]], session: _Session, stream_id: int) -> None:
        path = self.at(named)
        if not path.is_file():
            raise IsADirectoryError(21, "is a directory") if path.exists() else FileNotFoundError(2, "not there")
        start = int(values.get("offset", ["0"])[0])
        left = max(path.stat().st_size - start, 0)
        if "length" in values:
            left = min(left, int(values["length"][0]))
        session.headers(stream_id, 200, "application/octet-stream", length=left)
        with path.open("rb") as file:
            file.seek(start)
            if self._breaks("read"):
                await session.data(stream_id, file.read(left // 2))
                await self._break(session, stream_id)
                return
            while left and (chunk := file.read(min(left, 1 << 18))):
                left -= len(chunk)
                await session.data(stream_id, chunk)
        await session.data(stream_id, b"", end=True)

    async def _write(self, named: str, values: dict[str, list[str]], stream: Stream) -> dict[str, Any]:
        path = self.at(named)
        if path.is_dir():
            raise IsADirectoryError(21, "is a directory")
        if "parents" in values:
            path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{_TEMPORARY}{secrets.token_hex(4)}")
        with temporary.open("xb") as file:
            try:
                async for chunk in stream.chunks():
                    if "write" in self.stalled:
                        await asyncio.Event().wait()
                    if self.answers.get("full") and file.tell():
                        raise Refused(507, "guest_disk_full", "no space left on device")
                    file.write(chunk)
                file.flush()
                temporary.chmod(int(values.get("mode", ["644"])[0], 8))
                if "mtime_ns" in values:
                    os.utime(temporary, ns=(int(values["mtime_ns"][0]),) * 2)
                temporary.rename(path.resolve())
            finally:
                temporary.unlink(missing_ok=True)
        self.owners[named] = values.get("user", [""])[0]
        return self._describe(path, follow=True)

    def _remove(self, named: str, *, recursive: bool) -> None:
        path = self.at(named)
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        elif recursive:
            shutil.rmtree(path)
        elif any(path.iterdir()):
            raise Refused(409, "directory_not_empty", f"{named}: directory not empty")
        else:
            path.rmdir()

    async def _list(self, named: str, session: _Session, stream_id: int) -> None:
        entries = list(self.at(named).iterdir())
        session.headers(stream_id, 200, "application/x-ndjson")
        for entry in entries:
            await session.data(stream_id, _line(self._describe(entry, follow=False)))
            if self._breaks("list"):
                await self._break(session, stream_id)
                return
        await session.data(stream_id, _line({"end": True}), end=True)

    async def _watch(self, named: str, session: _Session, stream_id: int) -> None:
        if not self.at(named).is_dir():
            raise NotADirectoryError(20, "not a directory")
        session.headers(stream_id, 200, "application/x-ndjson")
        self.watching += 1
        try:
            await session.data(stream_id, _line({"type": "ready"}))
            if self._breaks("watch"):
                await self._break(session, stream_id)
                return
            while not (event := await self.events.get()).get("end"):
                await session.data(stream_id, _line(event))
            await session.data(stream_id, _line(event), end=True)
        finally:
            self.watching -= 1

    async def _read_tar(self, paths: list[str], session: _Session, stream_id: int) -> None:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as archive:
            for named in paths:
                contents = named.endswith(("/.", "/"))
                path = self.at(named)
                archive.add(path.resolve() if contents else path, arcname="." if contents else path.name)
        session.headers(stream_id, 200, "application/x-tar")
        data = packed.getvalue()
        if self._breaks("tar"):
            await session.data(stream_id, data[: len(data) // 2])
            await self._break(session, stream_id)
            return
        await session.data(stream_id, data, end=True)

    async def _write_tar(self, named: str, values: dict[str, list[str]], stream: Stream) -> dict[str, int]:
        path = self.at(named)
        create = "create" in values
        if create and path.exists():
            raise FileExistsError(17, "file exists")
        target = path.with_name(f"{_TEMPORARY}{secrets.token_hex(4)}") if create else path
        if create:
            target.mkdir()
        done = False
        try:
            data = await stream.read()
            with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as archive:
                archive.extraction_filter = lambda member, path: member  # what Python 3.14 would ask for
                archive.extractall(target)
                entries = len(archive.getmembers())
                for member in filter(tarfile.TarInfo.issym, archive.getmembers()):
                    os.utime(target / member.name, (member.mtime, member.mtime), follow_symlinks=False)
                for member in filter(tarfile.TarInfo.isdir, archive.getmembers()):
                    os.utime(target / member.name, (member.mtime, member.mtime))
            if create:
                target.rename(path)
            done = True
        finally:
            if create and not done:
                shutil.rmtree(target)
        self.owners[named] = values.get("user", ["archive" if "keep_owner" in values else ""])[0]
        return {"entries": entries, "bytes": len(data)}

    def _breaks(self, what: str) -> bool:
        return self.break_off == what or what in self.stalled

    async def _break(self, session: _Session, stream_id: int) -> None:
        if self.stalled:
            await asyncio.Event().wait()
        session.reset(stream_id)


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"
