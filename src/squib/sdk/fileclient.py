"""Requests for the files of one VM, as its engine answers them: what lies under `AsyncFiles` and copying."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from squib.errors import EngineUnavailable, InvalidArgument, TransferFailed
from squib.models import FileInfo
from squib.protocol.guestfiles import GuestPath, LineDecoder, check_path, encode_query, parse_info, parse_line
from squib.sdk.client import EngineClient
from squib.sdk.config import check_ref
from squib.sdk.result import Copied

_MAX_MODE = 0o7777


class FileClient:
    """The files of the VM ``ref``. Raises the `FileError` that the guest names, `InvalidArgument`, `WrongState`,
    `NotFound`, `AgentUnreachable`, and `TransferFailed` for what breaks off.
    """

    def __init__(self, engine: EngineClient, ref: str) -> None:
        self._engine = engine
        self._url = f"/vms/{check_ref(ref)}/files"

    async def read(self, path: GuestPath, *, offset: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        """The bytes of a file, from ``offset``, at most ``length``."""
        for name, value in (("offset", offset), ("length", length)):
            if value is not None and not 0 <= value < 1 << 63:
                raise InvalidArgument(f"{name}: {value} is not a number of bytes")
        query = encode_query(("path", check_path(path)), ("offset", offset), ("length", length))
        async with aclosing(self._receive(query, path)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def read_tar(self, path: GuestPath) -> AsyncGenerator[bytes, None]:
        """A file or directory as a tar; with ``/.`` at its end, what is in it."""
        async with aclosing(self._receive("/tar" + encode_query(("path", check_path(path))), path)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def lines(self, what: str, path: GuestPath, **options: bool) -> AsyncGenerator[dict[str, Any], None]:
        """What ``list`` and ``watch`` answer, up to the line that is the end."""
        url = f"/{what}" + encode_query(("path", check_path(path)), *options.items())
        decoder = LineDecoder()
        async with aclosing(self._receive(url, path)) as chunks:
            async for chunk in chunks:
                for line in decoder.feed(chunk):
                    if line.get("end") is True:
                        return
                    yield line
        raise _broken_off(path)

    async def _receive(self, url: str, path: GuestPath) -> AsyncGenerator[bytes, None]:
        begun = False
        try:
            async with self._engine.stream("GET", self._url + url) as response:
                begun = True
                async for chunk in response.aiter_raw():
                    yield chunk
        except EngineUnavailable as error:
            if begun:
                raise _broken_off(path) from error
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
        """Make ``chunks`` a file. If they raise, nothing of them stays."""
        query = encode_query(
            ("path", check_path(path)),
            ("mode", octal(mode)),
            ("user", owner),
            ("parents", parents),
            ("mtime_ns", mtime_ns),
        )
        return parse_info(await self._put(query, chunks))

    async def write_tar(
        self, path: GuestPath, chunks: AsyncGenerator[bytes, None], *, owner: str | None, keep_owner: bool, create: bool
    ) -> Copied:
        """Unpack a tar below the directory ``path``, which with ``create`` appears when all of it is there."""
        query = encode_query(
            ("path", check_path(path)), ("user", owner), ("keep_owner", keep_owner), ("create", create)
        )
        count = await self._put(f"/tar{query}", chunks)
        return Copied(count["entries"], count["bytes"])

    async def _put(self, url: str, chunks: AsyncGenerator[bytes, None]) -> dict[str, Any]:
        async with aclosing(chunks), self._engine.stream("PUT", self._url + url, chunks) as response:
            return parse_line(await response.aread())

    async def stat(self, path: GuestPath, *, follow: bool = True) -> FileInfo:
        """A file's description."""
        query = encode_query(("path", check_path(path)), ("follow", str(follow).lower()))
        return parse_info(await self._engine.request("GET", f"{self._url}/stat{query}"))

    async def mkdir(self, path: GuestPath, *, parents: bool, mode: int | None, owner: str | None) -> None:
        """Make a directory."""
        body = {"path": check_path(path), "parents": parents, "mode": octal(mode), "user": owner}
        await self._engine.request("POST", f"{self._url}/mkdir", body)

    async def rename(self, source: GuestPath, target: GuestPath) -> None:
        """Give a file another name."""
        await self._engine.request(
            "POST", f"{self._url}/rename", {"from": check_path(source), "to": check_path(target)}
        )

    async def remove(self, path: GuestPath, *, recursive: bool) -> None:
        """Remove a file or directory."""
        query = encode_query(("path", check_path(path)), ("recursive", recursive))
        await self._engine.request("DELETE", f"{self._url}{query}")


def octal(mode: int | None) -> str | None:
    """Permission bits as octal digits. Raises `InvalidArgument`."""
    if mode is None:
        return None
    if not 0 <= mode <= _MAX_MODE:
        raise InvalidArgument(f"mode: {mode} is none", hint="permission bits are like 0o644")
    return f"{mode:o}"


def _broken_off(path: GuestPath) -> TransferFailed:
    return TransferFailed(
        f"what the guest sent of {check_path(path)!r} broke off: the VM ended or hangs, or the file was cut short",
        hint="squib logs --engine says more",
    )
