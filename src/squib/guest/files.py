"""Requests for the files of a guest (``protocol/agent.md``, Files)."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from squib.guest.http2 import BULK_WINDOW_BYTES, STREAM_WINDOW_BYTES
from squib.models import FileInfo
from squib.protocol.guestfiles import MAX_LINE_BYTES, encode_query, parse_info, parse_line

if TYPE_CHECKING:
    from squib.guest.http2 import Body, Response

_BYTES = "application/octet-stream"
_REMOVE_TIMEOUT_S = 600.0
"""A tree may have many files, and nothing is heard until the last is gone."""


class Send(Protocol):
    """Sends a request and returns the answer when it begins."""

    def __call__(
        self, method: str, path: str, body: Body, *, content_type: str, window_bytes: int = STREAM_WINDOW_BYTES
    ) -> Awaitable[Response]: ...


class Ask(Protocol):
    """Sends a small request and returns its JSON."""

    def __call__(
        self, method: str, path: str, value: dict[str, Any] | None = None, *, timeout_s: float | None = None
    ) -> Awaitable[dict[str, Any]]: ...


class AgentFiles:
    """The files of the guest of an `AgentClient`. Paths are absolute, and checked by whoever calls.

    What streams comes as a response of the agent; its bytes are not looked at. All raise the `FileError` that the agent
    names, and `AgentUnreachable`.
    """

    def __init__(self, send: Send, ask: Ask) -> None:
        self._send = send
        self._ask = ask

    async def read(self, path: str, *, offset: int, length: int | None) -> Response:
        """A file's bytes; the response has a length, but for files of ``/proc``."""
        query = encode_query(("path", path), ("offset", offset), ("length", length))
        return await self._open(f"/v1/files{query}", window_bytes=BULK_WINDOW_BYTES)

    async def list(self, path: str) -> Response:
        """The entries of a directory, as lines."""
        return await self._open("/v1/files/list" + encode_query(("path", path)))

    async def watch(self, path: str, *, recursive: bool) -> Response:
        """What happens in a directory, as lines."""
        return await self._open("/v1/files/watch" + encode_query(("path", path), ("recursive", recursive)))

    async def read_tar(self, paths: Sequence[str]) -> Response:
        """Files and directories as a tar."""
        query = encode_query(*(("path", path) for path in paths))
        return await self._open(f"/v1/files/tar{query}", window_bytes=BULK_WINDOW_BYTES)

    async def stat(self, path: str, *, follow: bool) -> FileInfo:
        """A file's description."""
        query = encode_query(("path", path), ("follow", "1" if follow else "0"))
        return parse_info(await self._ask("GET", f"/v1/files/stat{query}"))

    async def write(
        self, path: str, body: Body, *, mode: str | None, user: str | None, parents: bool, mtime_ns: int | None
    ) -> FileInfo:
        """Make ``body`` a file; its description. A body that raises leaves nothing."""
        query = encode_query(
            ("path", path), ("mode", mode), ("user", user), ("parents", parents), ("mtime_ns", mtime_ns)
        )
        return parse_info(await self._put(f"/v1/files{query}", body, _BYTES))

    async def write_tar(
        self, path: str, body: Body, *, user: str | None, keep_owner: bool, create: bool
    ) -> dict[str, int]:
        """Unpack ``body`` below ``path``; how many entries and bytes it had."""
        query = encode_query(("path", path), ("user", user), ("keep_owner", keep_owner), ("create", create))
        answer = await self._put(f"/v1/files/tar{query}", body, "application/x-tar")
        return {name: value for name in ("entries", "bytes") if isinstance(value := answer.get(name), int)}

    async def mkdir(self, path: str, *, mode: str | None, user: str | None, parents: bool) -> None:
        """Make a directory."""
        options = {"mode": mode, "user": user, "parents": parents}
        await self._ask("POST", "/v1/files/mkdir", {"path": path} | {key: val for key, val in options.items() if val})

    async def rename(self, source: str, target: str) -> None:
        """Give a file another name."""
        await self._ask("POST", "/v1/files/rename", {"from": source, "to": target})

    async def remove(self, path: str, *, recursive: bool) -> None:
        """Remove a file, or a directory."""
        query = encode_query(("path", path), ("recursive", recursive))
        await self._ask("DELETE", f"/v1/files{query}", timeout_s=_REMOVE_TIMEOUT_S)

    async def _open(self, path: str, *, window_bytes: int = STREAM_WINDOW_BYTES) -> Response:
        return await self._send("GET", path, b"", content_type="", window_bytes=window_bytes)

    async def _put(self, path: str, body: Body, content_type: str) -> dict[str, Any]:
        async with await self._send("PUT", path, body, content_type=content_type) as response:
            return parse_line(await response.read(max_bytes=MAX_LINE_BYTES))
