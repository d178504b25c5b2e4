"""The client for the engine's file API, for `AsyncFiles` and copying."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from squib.errors import AgentProtocolError, EngineUnavailable, InvalidArgument, TransferFailed
from squib.models import Account, FileInfo
from squib.protocol.guestfiles import (
    GuestPath,
    LineDecoder,
    check_path,
    encode_query,
    parse_account,
    parse_info,
    parse_line,
)
from squib.sdk.client import EngineClient
from squib.sdk.config import check_ref
from squib.sdk.content import send
from squib.sdk.result import CopyResult

_MAX_MODE = 0o7777

MAX_READ_BYTES = 256 << 20
"""The most bytes that `FileClient.read_all` returns if the caller gives no length."""


class FileClient:
    """A client for the files of the VM ``ref``.

    Methods raise the `FileError` that the guest reports, `InvalidArgument`, `WrongState`, `NotFound`,
    `AgentUnreachable`, and `TransferFailed` if a transfer is interrupted.
    """

    def __init__(self, engine: EngineClient, ref: str, user: str | None = None) -> None:
        self._engine = engine
        self._ref = ref
        self._url = f"/vms/{check_ref(ref)}/files"
        self._user = user

    def acting_as(self, user: str | None) -> FileClient:
        """Return a client for the same files with the rights of ``user``.

        With ``None``, return this client.
        """
        return self if user is None else FileClient(self._engine, self._ref, user)

    def _query(self, *pairs: tuple[str, str | int | bool | None]) -> str:
        return encode_query(*pairs, ("as_user", self._user))

    async def read(self, path: GuestPath, *, offset: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        """Yield at most ``length`` bytes of a file, starting at ``offset``."""
        async with aclosing(self._receive(self._range(path, offset, length), path)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def read_all(self, path: GuestPath, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return at most ``length`` bytes of a file, starting at ``offset``.

        Raises `InvalidArgument` if ``length`` is ``None`` and more than `MAX_READ_BYTES` follow.
        """
        limit = MAX_READ_BYTES if length is None else None
        gathered = bytearray()
        async with aclosing(self._receive(self._range(path, offset, length), path, limit=limit)) as chunks:
            async for chunk in chunks:
                gathered += chunk
                if limit is not None and len(gathered) > limit:  # a file of unknown size, as in /proc
                    raise _too_large(path, f"more than {limit} bytes")
        return bytes(gathered)

    def _range(self, path: GuestPath, offset: int, length: int | None) -> str:
        for name, value in (("offset", offset), ("length", length)):
            if value is not None and not 0 <= value < 1 << 63:
                raise InvalidArgument(f"invalid {name} {value}: use a number of bytes from 0 to 2**63 - 1")
        return self._query(("path", check_path(path)), ("offset", offset), ("length", length))

    async def read_tar(self, path: GuestPath, *, xattrs: bool = False) -> AsyncGenerator[bytes, None]:
        """Yield a file or directory as a tar archive.

        With ``xattrs``, the archive has extended attributes of the ``user`` namespace too. If ``path`` ends with
        ``/.``, it has the directory's contents only.
        """
        query = self._query(("path", check_path(path)), ("xattrs", xattrs))
        async with aclosing(self._receive(f"/tar{query}", path)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def lines(self, what: str, path: GuestPath, **options: bool) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the entries of a ``list`` or ``watch`` response.

        Raises `TransferFailed` if the response has no end line.
        """
        url = f"/{what}" + self._query(("path", check_path(path)), *options.items())
        decoder = LineDecoder()
        async with aclosing(self._receive(url, path)) as chunks:
            async for chunk in chunks:
                for line in decoder.feed(chunk):
                    if line.get("end") is True:
                        return
                    yield line
        raise _interrupted(path)

    async def _receive(self, url: str, path: GuestPath, *, limit: int | None = None) -> AsyncGenerator[bytes, None]:
        started = False
        try:
            async with self._engine.stream("GET", self._url + url) as response:
                started = True
                length = response.headers.get("content-length")
                if limit is not None and length is not None and int(length) > limit:
                    raise _too_large(path, f"{int(length)} bytes")
                async for chunk in response.aiter_raw():
                    yield chunk
        except EngineUnavailable as error:
            if started:
                raise _interrupted(path) from error
            raise

    async def write(
        self,
        path: GuestPath,
        chunks: AsyncGenerator[bytes, None],
        *,
        mode: int | None = None,
        owner: str | None = None,
        parents: bool = False,
        mtime_ns: int | None = None,
    ) -> FileInfo:
        """Write ``chunks`` to a file.

        If ``chunks`` raises, the file is unchanged.
        """
        query = self._query(
            ("path", check_path(path)),
            ("mode", octal(mode)),
            ("user", owner),
            ("parents", parents),
            ("mtime_ns", mtime_ns),
        )
        return parse_info(await self._put(query, chunks))

    async def write_tar(
        self,
        path: GuestPath,
        chunks: AsyncGenerator[bytes, None],
        *,
        owner: str | None,
        keep_owner: bool,
        create: bool,
        parents: bool = False,
    ) -> CopyResult:
        """Extract a tar archive into the directory ``path``.

        With ``create``, the directory is new and appears only after all of it is extracted. With ``parents`` too,
        missing parent directories are created.
        """
        query = self._query(
            ("path", check_path(path)),
            ("user", owner),
            ("keep_owner", keep_owner),
            ("create", create),
            ("parents", parents),
        )
        return _copy_result(await self._put(f"/tar{query}", chunks))

    async def _put(self, url: str, chunks: AsyncGenerator[bytes, None]) -> dict[str, Any]:
        return parse_line(await send(self._engine, "PUT", self._url + url, chunks))

    async def stat(self, path: GuestPath, *, follow: bool = True) -> FileInfo:
        """Return a file's metadata."""
        query = self._query(("path", check_path(path)), ("follow", str(follow).lower()))
        return parse_info(await self._engine.request("GET", f"{self._url}/stat{query}"))

    async def account(self) -> Account:
        """Describe the acting user, by default the VM's user."""
        query = encode_query(("user", self._user))
        return parse_account(await self._engine.request("GET", f"/vms/{self._ref}/account{query}"))

    async def mkdir(self, path: GuestPath, *, parents: bool, mode: int | None, owner: str | None) -> None:
        """Create a directory."""
        body = {"path": check_path(path), "parents": parents, "mode": octal(mode), "user": owner} | self._acting()
        await self._engine.request("POST", f"{self._url}/mkdir", body)

    async def rename(self, source: GuestPath, target: GuestPath) -> None:
        """Rename a file or directory."""
        await self._engine.request(
            "POST", f"{self._url}/rename", {"from": check_path(source), "to": check_path(target)} | self._acting()
        )

    async def remove(self, path: GuestPath, *, recursive: bool) -> None:
        """Remove a file or directory."""
        query = self._query(("path", check_path(path)), ("recursive", recursive))
        await self._engine.request("DELETE", f"{self._url}{query}")

    def _acting(self) -> dict[str, str]:
        return {} if self._user is None else {"as_user": self._user}


def octal(mode: int | None) -> str | None:
    """Format permission bits as octal digits. Raises `InvalidArgument`."""
    if mode is None:
        return None
    if not 0 <= mode <= _MAX_MODE:
        raise InvalidArgument(f"invalid mode {mode}", hint="use permission bits such as 0o644")
    return f"{mode:o}"


def _copy_result(counts: dict[str, Any]) -> CopyResult:
    entries, size = counts.get("entries"), counts.get("bytes")
    if type(entries) is not int or type(size) is not int:
        raise AgentProtocolError("the guest's response to an upload has no counts")
    return CopyResult(entries, size)


def _too_large(path: GuestPath, size: str) -> InvalidArgument:
    return InvalidArgument(
        f"{check_path(path)!r} is too large to read into memory: {size}, the limit is {MAX_READ_BYTES >> 20} MiB",
        hint="use open, stream or download, or read it in parts with offset and length",
    )


def _interrupted(path: GuestPath) -> TransferFailed:
    return TransferFailed(
        f"the transfer of {check_path(path)!r} was interrupted: the VM stopped or hangs, or the file was truncated",
        hint="squib logs --engine shows the engine's log",
    )
