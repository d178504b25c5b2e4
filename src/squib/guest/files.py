"""Requests for the files of a guest (``protocol/agent.md``, Files)."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from squib.guest.http2 import BULK_WINDOW_BYTES, STREAM_WINDOW_BYTES
from squib.models import FileInfo
from squib.protocol.guestfiles import MAX_LINE_BYTES, encode_query, parse_info, parse_line

if TYPE_CHECKING:
    from squib.guest.http2 import Body
    from squib.guest.response import Response

_BYTES = "application/octet-stream"
_REMOVE_TIMEOUT_S = 600.0
"""A tree may have many files, and the agent responds when the last is removed."""


class Send(Protocol):
    """A function that sends a request and returns its response.

    It returns when the headers of the response arrive.
    """

    def __call__(
        self, method: str, path: str, body: Body, *, content_type: str, window_bytes: int = STREAM_WINDOW_BYTES
    ) -> Awaitable[Response]: ...


class Ask(Protocol):
    """Sends a small request and returns the JSON of its response."""

    def __call__(
        self, method: str, path: str, value: dict[str, Any] | None = None, *, timeout_s: float | None = None
    ) -> Awaitable[dict[str, Any]]: ...


class AgentFiles:
    """The files of an `AgentClient`'s guest.

    The caller checks paths; relative ones begin in the acting user's home.

    Methods that stream return a response of the agent, whose bytes are not checked. All methods raise the `FileError`
    that the agent reports, and `AgentUnreachable`.
    """

    def __init__(self, send: Send, ask: Ask, as_user: str | None = None) -> None:
        self._send = send
        self._ask = ask
        self._as_user = as_user

    def acting_as(self, user: str | None) -> AgentFiles:
        """Return the same files, used with the rights of ``user``.

        ``None`` means root.
        """
        return AgentFiles(self._send, self._ask, user)

    async def read(self, path: str, *, offset: int, length: int | None) -> Response:
        """Read a file.

        The response has a length, except for files in ``/proc``.
        """
        query = self._query(("path", path), ("offset", offset), ("length", length))
        return await self._open(f"/v1/files{query}", window_bytes=BULK_WINDOW_BYTES)

    async def list(self, path: str) -> Response:
        """List the entries of a directory, as lines of JSON."""
        return await self._open("/v1/files/list" + self._query(("path", path)))

    async def watch(self, path: str, *, recursive: bool) -> Response:
        """Follow the changes in a directory, as lines of JSON."""
        return await self._open("/v1/files/watch" + self._query(("path", path), ("recursive", recursive)))

    async def read_tar(self, paths: Sequence[str], *, xattrs: bool = False) -> Response:
        """Read files and directories as a tar archive.

        With ``xattrs``, the archive contains their ``user`` extended attributes.
        """
        query = self._query(*(("path", path) for path in paths), ("xattrs", xattrs))
        return await self._open(f"/v1/files/tar{query}", window_bytes=BULK_WINDOW_BYTES)

    async def stat(self, path: str, *, follow: bool) -> FileInfo:
        """Describe a file."""
        query = self._query(("path", path), ("follow", "1" if follow else "0"))
        return parse_info(await self._ask("GET", f"/v1/files/stat{query}"))

    async def write(
        self, path: str, body: Body, *, mode: str | None, user: str | None, parents: bool, mtime_ns: int | None
    ) -> FileInfo:
        """Write a file and return its description.

        If ``body`` raises, no file is left.
        """
        query = self._query(
            ("path", path), ("mode", mode), ("user", user), ("parents", parents), ("mtime_ns", mtime_ns)
        )
        return parse_info(await self._put(f"/v1/files{query}", body, _BYTES))

    async def write_tar(
        self, path: str, body: Body, *, user: str | None, keep_owner: bool, create: bool, parents: bool
    ) -> dict[str, int]:
        """Unpack a tar archive into the directory ``path``.

        Returns how many ``entries`` and ``bytes`` were unpacked.
        """
        query = self._query(
            ("path", path), ("user", user), ("keep_owner", keep_owner), ("create", create), ("parents", parents)
        )
        reply = await self._put(f"/v1/files/tar{query}", body, "application/x-tar")
        return {name: value for name in ("entries", "bytes") if isinstance(value := reply.get(name), int)}

    async def mkdir(self, path: str, *, mode: str | None, user: str | None, parents: bool) -> None:
        """Create a directory."""
        options = {"mode": mode, "user": user, "parents": parents, "as_user": self._as_user}
        await self._ask("POST", "/v1/files/mkdir", {"path": path} | {key: val for key, val in options.items() if val})

    async def rename(self, source: str, target: str) -> None:
        """Rename a file."""
        acting = {"as_user": self._as_user} if self._as_user else {}
        await self._ask("POST", "/v1/files/rename", {"from": source, "to": target} | acting)

    async def remove(self, path: str, *, recursive: bool) -> None:
        """Remove a file or a directory."""
        query = self._query(("path", path), ("recursive", recursive))
        await self._ask("DELETE", f"/v1/files{query}", timeout_s=_REMOVE_TIMEOUT_S)

    def _query(self, *pairs: tuple[str, str | int | bool | None]) -> str:
        return encode_query(*pairs, ("as_user", self._as_user))

    async def _open(self, path: str, *, window_bytes: int = STREAM_WINDOW_BYTES) -> Response:
        return await self._send("GET", path, b"", content_type="", window_bytes=window_bytes)

    async def _put(self, path: str, body: Body, content_type: str) -> dict[str, Any]:
        async with await self._send("PUT", path, body, content_type=content_type) as response:
            return parse_line(await response.read(max_bytes=MAX_LINE_BYTES))
