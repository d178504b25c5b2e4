"""How files of a guest are spoken of: paths and queries on the way in, descriptions and events on the way out.

A path is bytes, in Python a `str` with lone surrogates for what is not UTF-8 (`os.fsdecode`), percent-encoded in a
query. What comes from a guest is hostile: a line that breaks the rules is `AgentUnreachable`
(``protocol/agent.md``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, urlencode

from pydantic import ValidationError

from squib.errors import AgentUnreachable, InvalidArgument
from squib.models import MAX_PATH_BYTES, FileEvent, FileInfo, ResponseModel

GuestPath = str | bytes | os.PathLike[str]
"""An absolute path in a guest."""

MAX_LINE_BYTES = 1 << 16
_SHOWN = 80

M = TypeVar("M", bound=ResponseModel)


def check_path(path: GuestPath) -> str:
    """A path in a guest as text. Raises `InvalidArgument` if it is relative, too long or holds a NUL byte."""
    text = os.fsdecode(path)
    shown = text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
    if not text.startswith("/"):
        raise InvalidArgument(
            f"{shown!r} is not an absolute path", hint=f"paths in a guest begin with '/', such as {'/root/' + shown!r}"
        )
    if "\0" in text:
        raise InvalidArgument(f"{shown!r} holds a NUL byte, which no path can")
    try:
        size = len(os.fsencode(text))
    except UnicodeEncodeError:
        raise InvalidArgument(f"{shown!r} is no path: it holds a surrogate that stands for no byte") from None
    if size > MAX_PATH_BYTES:
        raise InvalidArgument(f"{shown!r} has {size} bytes; a path has at most {MAX_PATH_BYTES}")
    return text


def encode_query(*pairs: tuple[str, str | int | bool | None]) -> str:
    """A query, with its question mark, of those pairs that say something: ``None`` and ``False`` are left out."""
    said = [
        (name, "1" if value is True else str(value))
        for name, value in pairs
        if value is not None and value is not False
    ]
    return "?" + urlencode(said, quote_via=quote, safe="/", errors="surrogateescape") if said else ""


def decode_query(query: bytes) -> list[tuple[str, str]]:
    """The pairs of a query, with their bytes kept."""
    return parse_qsl(query.decode("latin-1"), keep_blank_values=True, errors="surrogateescape")


class LineDecoder:
    """Turns a byte stream into the JSON objects that are its lines. Holds at most one unfinished line."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """The objects that are complete with ``data``. Raises `AgentUnreachable`."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            yield parse_line(line)
        if len(self._rest) > MAX_LINE_BYTES:
            raise AgentUnreachable(f"the guest sent a line of more than {MAX_LINE_BYTES} bytes")


def parse_line(line: bytes) -> dict[str, Any]:
    """The JSON object that is a line, or a short answer. Raises `AgentUnreachable`."""
    try:
        value = json.loads(line) if len(line) <= MAX_LINE_BYTES else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise AgentUnreachable("the guest sent what is no JSON object, or a long one")
    return value


def parse_info(values: dict[str, Any]) -> FileInfo:
    """A file's description. Raises `AgentUnreachable`."""
    return _parse(FileInfo, values, FileInfo.model_fields)


def parse_event(values: dict[str, Any]) -> FileEvent:
    """An event of a watched directory. Raises `AgentUnreachable`."""
    return _parse(FileEvent, values | {"source": values.get("from")}, FileEvent.model_fields)


def _parse(model: type[M], values: dict[str, Any], names: Iterable[str]) -> M:
    try:
        return model.model_validate({name: values[name] for name in names if name in values})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = ".".join(map(str, problem["loc"]))
        raise AgentUnreachable(f"the guest sent what is no {model.__name__}: {field}: {problem['msg'][:200]}") from None
