"""Paths, queries, file descriptions and events of guest files on the wire.

A path is bytes. In Python it is a `str` with lone surrogates for bytes that are not UTF-8 (`os.fsdecode`); in a query
it is percent-encoded. Guests are not trusted: an invalid line raises `AgentProtocolError` (``protocol/agent.md``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, urlencode

from pydantic import ValidationError

from squib.errors import AgentProtocolError, InvalidArgument
from squib.models import MAX_PATH_BYTES, Account, FileEvent, FileInfo, ResponseModel

GuestPath = str | bytes | os.PathLike[str]
"""A path in a guest. A relative one begins in the VM's working directory, by default the user's home."""

MAX_LINE_BYTES = 1 << 16
_SHOWN = 80

M = TypeVar("M", bound=ResponseModel)


def check_path(path: GuestPath) -> str:
    """Return a guest path, absolute or relative, as text.

    Raises `InvalidArgument` if it is empty, is too long, contains a NUL byte, or is ``~`` or starts with ``~/``.
    """
    text = os.fsdecode(path)
    shown = text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
    if not text:
        raise InvalidArgument("the path is empty", hint="'.' is the working directory")
    if text == "~" or text.startswith("~/"):
        raise InvalidArgument(
            f"invalid path {shown!r}: '~' is not expanded", hint="relative paths begin in the user's home: omit '~/'"
        )
    if "\0" in text:
        raise InvalidArgument(f"{shown!r} contains a NUL byte")
    try:
        size = len(os.fsencode(text))
    except UnicodeEncodeError:
        raise InvalidArgument(f"invalid path {shown!r}: it contains a surrogate that stands for no byte") from None
    if size > MAX_PATH_BYTES:
        raise InvalidArgument(f"the path {shown!r} has {size} bytes; the limit is {MAX_PATH_BYTES}")
    return text


def encode_query(*pairs: tuple[str, str | int | bool | None]) -> str:
    """Encode a query string with its question mark.

    Pairs whose value is ``None`` or ``False`` are left out.
    """
    given = [
        (name, "1" if value is True else str(value))
        for name, value in pairs
        if value is not None and value is not False
    ]
    return "?" + urlencode(given, quote_via=quote, safe="/", errors="surrogateescape") if given else ""


def decode_query(query: bytes) -> list[tuple[str, str]]:
    """Decode a query string into pairs.

    Bytes that are not UTF-8 are kept as lone surrogates.
    """
    return parse_qsl(query.decode("latin-1"), keep_blank_values=True, errors="surrogateescape")


class LineDecoder:
    """Decode a byte stream of JSON lines into objects.

    Buffers at most one unfinished line.
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """Add ``data`` and yield the objects that are now complete.

        Raises `AgentProtocolError`.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            yield parse_line(line)
        if len(self._rest) > MAX_LINE_BYTES:
            raise AgentProtocolError(f"the guest sent a line of more than {MAX_LINE_BYTES} bytes")


def parse_line(line: bytes) -> dict[str, Any]:
    """Parse a line or a short response as a JSON object.

    Raises `AgentProtocolError`.
    """
    try:
        value = json.loads(line) if len(line) <= MAX_LINE_BYTES else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise AgentProtocolError("the guest sent an invalid line: it is too long or not a JSON object")
    return value


def parse_info(values: object) -> FileInfo:
    """Parse a file description. Raises `AgentProtocolError`."""
    if not isinstance(values, dict):
        raise AgentProtocolError("the guest sent an invalid FileInfo: not a JSON object")
    return _parse(FileInfo, values, FileInfo.model_fields)


def parse_account(values: dict[str, Any]) -> Account:
    """Parse the description of a user. Raises `AgentProtocolError`."""
    return _parse(Account, values, Account.model_fields)


def parse_event(values: dict[str, Any]) -> FileEvent:
    """Parse an event of a watched directory. Raises `AgentProtocolError`."""
    return _parse(FileEvent, values | {"source": values.get("from")}, FileEvent.model_fields)


def _parse(model: type[M], values: dict[str, Any], names: Iterable[str]) -> M:
    try:
        return model.model_validate({name: values[name] for name in names if name in values})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = ".".join(map(str, problem["loc"]))
        raise AgentProtocolError(
            f"the guest sent an invalid {model.__name__}: {field}: {problem['msg'][:200]}"
        ) from None
