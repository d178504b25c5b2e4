"""The files of a fake agent's guest: those below a real directory, and answers that break the rules.

What ``break_off`` names answers with half of what it should and a reset: ``read``, ``list``, ``watch``, ``tar``.
``answers`` are what paths answer instead: a status and a body.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import json
import os
import re
import secrets
import shutil
import stat
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from tests.fakes.requests import Refused, bad_request, check_path, check_query, check_user, is_flag, parse_object

if TYPE_CHECKING:
    from tests.fakes.wire import Session, Stream

_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "char_device",
    stat.S_IFBLK: "block_device",
}
_ERRORS: dict[int, tuple[int, str]] = {
    errno.ENOENT: (404, "no_such_file"),
    errno.EEXIST: (409, "file_exists"),
    errno.EISDIR: (409, "is_a_directory"),
    errno.ENOTDIR: (409, "not_a_directory"),
    errno.ENOTEMPTY: (409, "directory_not_empty"),
    errno.EACCES: (403, "permission_denied"),
    errno.EPERM: (403, "permission_denied"),
    errno.EROFS: (403, "permission_denied"),
    errno.ENOSPC: (507, "guest_disk_full"),
    errno.EINVAL: (400, "bad_request"),
    errno.ENAMETOOLONG: (400, "bad_request"),
    errno.ELOOP: (400, "bad_request"),
    errno.EBUSY: (400, "bad_request"),
}
_XATTR = "SCHILY.xattr."
_TEMPORARY = ".squib-"
_ENDPOINTS = {
    *(("GET", what) for what in ("", "stat", "list", "tar", "watch")),
    *(("PUT", what) for what in ("", "tar")),
    *(("POST", what) for what in ("mkdir", "rename")),
    ("DELETE", ""),
}
_MODE = re.compile("[0-7]{1,4}")
_OPTIONS = {
    "mode": _MODE,
    "offset": re.compile("[0-9]{1,19}"),
    "length": re.compile("[0-9]{1,19}"),
    "mtime_ns": re.compile("-?[0-9]{1,19}"),
}


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
    users: dict[str, str] | None = None
    """The accounts, if not every name is one."""
    acting: dict[str, str] = field(default_factory=dict)
    """Paths, and as whom requests last used them."""
    watched: list[tuple[str, bool]] = field(default_factory=list)
    """Directories that requests watch, and whether all below them."""

    async def answer(self, stream: Stream, session: Session, stream_id: int) -> None:
        self.loop = asyncio.get_running_loop()
        path, _, query = stream.path.partition("?")
        values = parse_qs(query, keep_blank_values=True, errors="surrogateescape")
        what = path.removeprefix("/v1/files").strip("/")
        acting = values.get("as_user", ["root"])[0]
        if any(values.get("path", [])):
            values["path"] = [check_path(each, self._home(acting)) for each in values["path"]]
        named = values.get("path", [""])[0]
        if named in self.answers:
            status, body = self.answers[named]
            session.headers(stream_id, status, "application/json")
            await session.data(stream_id, body, end=True)
            return
        check_query(query)
        if (stream.method, what) not in _ENDPOINTS:
            raise bad_request(f"no such endpoint: {stream.method} {stream.path}")
        if stream.method != "POST":
            for each in values.get("path", [""]):
                check_path(each)
            self._check_options(values)
            self.acting[named] = acting
        try:
            match stream.method, what:
                case "GET", "":
                    await self._read(named, values, session, stream_id)
                case "PUT", "":
                    await session.send_json(stream_id, 200, await self._write(named, values, stream))
                case "DELETE", "":
                    self._remove(named, recursive=_flag(values, "recursive"))
                    await session.send_json(stream_id, 204, None)
                case "GET", "stat":
                    info = self._describe(self.at(named), follow=_flag(values, "follow", default=True))
                    await session.send_json(stream_id, 200, info | {"name": Path(named).name or "/"})
                case "GET", "list":
                    await self._list(named, session, stream_id)
                case "POST", "mkdir":
                    self._mkdir(parse_object(await stream.read()))
                    await session.send_json(stream_id, 204, None)
                case "POST", "rename":
                    body = parse_object(await stream.read())
                    home = self._home(body.get("as_user") or "root")
                    source, target = check_path(body.get("from"), home), check_path(body.get("to"), home)
                    self.acting[source] = body.get("as_user") or "root"
                    os.rename(self.at(source), self.at(target))  # noqa: PTH104 (says which is which)
                    self._note("moved", target, source)
                    await session.send_json(stream_id, 204, None)
                case "GET", "watch":
                    await self._watch(named, values, session, stream_id)
                case "GET", "tar":
                    await self._read_tar(values["path"], session, stream_id, xattrs=_flag(values, "xattrs"))
                case "PUT", "tar":
                    await session.send_json(stream_id, 200, await self._write_tar(named, values, stream))
        except OSError as error:
            status, code = _ERRORS.get(error.errno or 0, (500, "internal"))
            raise Refused(status, code, f"{named}: {error.strerror}") from error

    def at(self, path: str) -> Path:
        """Where a file of the guest is on this machine."""
        assert path.startswith("/")
        return self.root / path.lstrip("/")

    def _check_options(self, values: dict[str, list[str]]) -> None:
        for name in ("parents", "recursive", "follow", "keep_owner", "create"):
            _flag(values, name)
        for name, pattern in _OPTIONS.items():
            if name in values and not pattern.fullmatch(values[name][0]):
                raise bad_request(f"{name}: {values[name][0]!r}")
        check_user(self.users, values.get("user", [""])[0] or "root")
        check_user(self.users, values.get("as_user", [""])[0] or "root")

    def _home(self, user: str) -> str:
        check_user(self.users, user)
        return (self.users or {}).get(user, "/root" if user == "root" else f"/home/{user}")

    def _note(self, kind: str, path: str, source: str | None = None) -> None:
        """Report a change to the watchers."""
        for root, recursive in self.watched:
            if path == root and kind == "deleted":
                self.events.put_nowait({"end": True})
            elif os.path.dirname(path) == root or (recursive and path.startswith(f"{root}/")):  # noqa: PTH120
                self.events.put_nowait({"type": kind, "path": path} | ({"from": source} if source else {}))

    def left_over(self) -> list[Path]:
        """Return the temporary files that were not removed."""
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
            "group": None if self.users is None else "root",
            "mtime_ns": status.st_mtime_ns,
            "link_target": os.readlink(path) if kind == "symlink" else None,  # noqa: PTH115
            "of_the_future": 1,
        }

    async def _read(self, named: str, values: dict[str, list[str]], session: Session, stream_id: int) -> None:
        path = self.at(named)
        _check_regular(path)
        start = int(values.get("offset", ["0"])[0])
        left = max(path.stat().st_size - start, 0)
        if "length" in values:
            left = min(left, int(values["length"][0]))
        if not path.stat().st_size and (content := path.read_bytes()[start:]):  # a file of /proc
            session.headers(stream_id, 200, "application/octet-stream")
            await session.data(stream_id, content, end=True)
            return
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
        if _flag(values, "parents"):
            path.parent.mkdir(parents=True, exist_ok=True)
        mode = 0o644
        with contextlib.suppress(FileNotFoundError):
            mode = stat.S_IMODE(path.stat().st_mode)
            _check_regular(path)
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
                temporary.chmod(int(values["mode"][0], 8) if "mode" in values else mode)
                if "mtime_ns" in values:
                    os.utime(temporary, ns=(int(values["mtime_ns"][0]),) * 2)
                temporary.rename(path.resolve())
            finally:
                temporary.unlink(missing_ok=True)
        self.owners[named] = values.get("user", [""])[0]
        self._note("created", named)
        return self._describe(path, follow=True)

    def _mkdir(self, body: dict[str, Any]) -> None:
        acting = body.get("as_user") or "root"
        named = check_path(body.get("path"), self._home(acting))
        self.acting[named] = acting
        mode, user, parents = body.get("mode", ""), body.get("user", ""), body.get("parents", False)
        if not (isinstance(mode, str) and (not mode or _MODE.fullmatch(mode)) and is_flag(parents)):
            raise bad_request("mode must be octal digits, at most 7777")
        check_user(self.users, user or "root")
        path = self.at(named)
        if parents and path.is_dir():
            return
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir()
        path.chmod(int(mode or "755", 8))
        self.owners[named] = user
        self._note("created", named)

    def _remove(self, named: str, *, recursive: bool) -> None:
        path = self.at(named)
        if named.rstrip("/").endswith("/.."):
            raise bad_request(f"{named}: a path that ends in .. is not removed")
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        elif recursive:
            shutil.rmtree(path)
        else:
            path.rmdir()
        self._note("deleted", named)

    async def _list(self, named: str, session: Session, stream_id: int) -> None:
        entries = list(self.at(named).iterdir())
        session.headers(stream_id, 200, "application/x-ndjson")
        for entry in entries:
            await session.data(stream_id, _line(self._describe(entry, follow=False)))
            if self._breaks("list"):
                await self._break(session, stream_id)
                return
        await session.data(stream_id, _line({"end": True}), end=True)

    async def _watch(self, named: str, values: dict[str, list[str]], session: Session, stream_id: int) -> None:
        if not stat.S_ISDIR(self.at(named).stat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "not a directory")
        watched = (named, _flag(values, "recursive"))
        self.watched.append(watched)
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
            self.watched.remove(watched)

    async def _read_tar(self, paths: list[str], session: Session, stream_id: int, *, xattrs: bool) -> None:
        packed = io.BytesIO()
        for named in paths:
            if named.endswith("/.."):
                raise bad_request(f"{named}: has no name for the archive")
            os.stat(os.fspath(self.at(named)) + ("/" if named.endswith(("/.", "/")) else ""))  # noqa: PTH116
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as archive:
            for named in paths:
                contents = named.endswith(("/.", "/"))
                path = self.at(named)
                archive.add(
                    path.resolve() if contents else path,
                    "." if contents else path.name,
                    filter=_packed(path.resolve() if contents else path.parent, xattrs),
                )
        session.headers(stream_id, 200, "application/x-tar")
        data = packed.getvalue()
        if self._breaks("tar"):
            await session.data(stream_id, data[: len(data) // 2])
            await self._break(session, stream_id)
            return
        await session.data(stream_id, data, end=True)

    async def _write_tar(self, named: str, values: dict[str, list[str]], stream: Stream) -> dict[str, int]:
        path = self.at(named)
        create = _flag(values, "create")
        if _flag(values, "keep_owner") and values.get("user", [""])[0]:
            raise bad_request("user and keep_owner cannot be combined")
        if _flag(values, "parents"):
            if not create:
                raise bad_request("parents requires create")
            path.parent.mkdir(parents=True, exist_ok=True)
        if create and path.exists():
            raise FileExistsError(errno.EEXIST, "file exists")
        if not create and not stat.S_ISDIR(path.stat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "not a directory")
        target = path.with_name(f"{_TEMPORARY}{secrets.token_hex(4)}") if create else path
        if create:
            target.mkdir()
        done = False
        try:
            data = await stream.read()
            members = _unpack(data, target)
            if create:
                target.rename(path)
            done = True
        except tarfile.TarError as error:
            raise bad_request(f"the archive: {error}") from error
        finally:
            if create and not done:
                shutil.rmtree(target)
        self.owners[named] = values.get("user", ["archive" if "keep_owner" in values else ""])[0]
        return {"entries": len(members), "bytes": sum(member.size for member in members)}

    def _breaks(self, what: str) -> bool:
        return self.break_off == what or what in self.stalled

    async def _break(self, session: Session, stream_id: int) -> None:
        if self.stalled:
            await asyncio.Event().wait()
        session.reset(stream_id)


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _flag(values: dict[str, list[str]], name: str, *, default: bool = False) -> bool:
    value = values.get(name, [""])[0]
    if value not in ("", "0", "1"):
        raise bad_request(f"{name} must be 0 or 1")
    return value == "1" if value else default


def _check_regular(path: Path) -> None:
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "is a directory, not a regular file")
    if not stat.S_ISREG(mode):
        raise Refused(409, "not_a_file", f"{path}: not a regular file")


def _packed(base: Path, xattrs: bool) -> Callable[[tarfile.TarInfo], tarfile.TarInfo]:
    """Return what makes a member's name relative, and adds its extended attributes."""

    def change(member: tarfile.TarInfo) -> tarfile.TarInfo:
        path = base / member.name
        if xattrs and (member.isfile() or member.isdir()) and path.exists():
            for name in os.listxattr(path):
                if name.startswith("user."):
                    member.pax_headers |= {_XATTR + name: os.getxattr(path, name).decode("utf-8", "surrogateescape")}
        member.name = member.name.removeprefix("./")
        return member

    return change


def _unpack(data: bytes, target: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as archive:
        archive.extraction_filter = lambda member, path: member  # what Python 3.14 would ask for
        members = archive.getmembers()
        _check_members(archive, members, target)
        archive.extractall(target)
        for member in members:
            for key, value in member.pax_headers.items():
                if key.startswith(f"{_XATTR}user."):
                    os.setxattr(
                        target / member.name, key.removeprefix(_XATTR), value.encode("utf-8", "surrogateescape")
                    )
        for member in filter(tarfile.TarInfo.issym, members):
            os.utime(target / member.name, (member.mtime, member.mtime), follow_symlinks=False)
        for member in filter(tarfile.TarInfo.isdir, members):
            os.utime(target / member.name, (member.mtime, member.mtime))
        return members


def _check_members(archive: tarfile.TarFile, members: list[tarfile.TarInfo], target: Path) -> None:
    """Reject members outside ``target``, and archives with an error record."""
    links, names = set(), set()
    for member in members:
        for name in (member.name, *([member.linkname] if member.islnk() else [])):
            parents = {os.fspath(parent) for parent in Path(name).parents}
            if name.startswith("/") or ".." in name.split("/") or parents & links:
                raise bad_request(f"the archive holds the name {name!r}")
        if member.islnk() and member.linkname not in names and not (target / member.linkname).exists():
            raise bad_request(f"the archive holds a link to {member.linkname!r}")
        names.add(member.name)
        if member.issym():
            links.add(member.name)
    if "SQUIB.error" in archive.pax_headers:
        raise bad_request(f"the archive is not complete: {archive.pax_headers['SQUIB.error']}")
