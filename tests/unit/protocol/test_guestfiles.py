"""Paths, queries, and what guests say of files: bytes are kept, and what is hostile is refused."""

import json
import os
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squib.errors import AgentProtocolError, InvalidArgument
from squib.models import FileEventType, FileType
from squib.protocol.guestfiles import (
    MAX_LINE_BYTES,
    LineDecoder,
    check_path,
    decode_query,
    encode_query,
    parse_event,
    parse_info,
    parse_line,
)

INFO: dict[str, Any] = {
    "name": "x", "type": "file", "size": 12, "mode": 420, "uid": 0, "gid": 0, "user": "root", "group": None,
    "mtime_ns": 1, "link_target": None,
}  # fmt: skip
PATHS = st.binary(min_size=1, max_size=200).map(lambda data: "/" + os.fsdecode(data.replace(b"\0", b"")))


@given(PATHS)
def test_a_path_goes_through_a_query_byte_for_byte(path: str) -> None:
    query = encode_query(("path", path), ("offset", 0), ("mode", None), ("recursive", False), ("follow", True))
    assert query.isascii() and " " not in query
    parsed = urlsplit(f"http://squib/{query}").query.encode("ascii")
    assert decode_query(parsed) == [("path", path), ("offset", "0"), ("follow", "1")]


def test_a_query_that_says_nothing_is_none() -> None:
    assert encode_query(("mode", None), ("recursive", False)) == ""


@pytest.mark.parametrize(
    "path", ["/a b", b"/a\xff", PurePosixPath("/x/y"), "/", "/é\n", "etc/passwd", b"\xff", ".", "./~", "/" + "a" * 4095]
)
def test_paths_are_text_bytes_or_path_objects(path: Any) -> None:
    assert check_path(path) == os.fsdecode(path)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("", "empty"),
        ("~/x", "not expanded"),
        ("~", "not expanded"),
        ("/a\0b", "NUL"),
        ("/" + "a" * 4096, "4097 bytes"),
        ("/" + "é" * 2048, "4097 bytes"),
        ("/\ud800", "surrogate"),
    ],
)
def test_what_is_no_path_is_refused(path: Any, problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem) as caught:
        check_path(path)
    assert len(caught.value.message) < 300


def test_a_description_is_read_and_unknown_fields_are_ignored() -> None:
    info = parse_info(INFO | {"name": "a\udcff", "future": 1})
    assert (info.name, info.type, info.mtime) == ("a\udcff", FileType.FILE, 1e-9)
    assert parse_info(INFO | {"name": "/", "type": "directory"}).name == "/"


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../x"}, {"name": "a/b"}, {"name": ""}, {"name": "a\0"}, {"name": "a" * 256}, {"name": "é" * 128},
        {"name": None}, {"name": 5}, {"name": "//"}, {"type": 7}, {"size": -1}, {"size": 2**63}, {"size": "big"},
        {"size": None}, {"mode": 0o10000}, {"mode": -1}, {"uid": -1}, {"gid": 2**32}, {"mtime_ns": 2**64},
        {"user": "x" * 5000}, {"link_target": "x" * 5000}, {"link_target": 7},
    ],
    ids=str,
)  # fmt: skip
def test_a_description_that_breaks_the_rules_is_an_error_of_the_guest(changes: dict[str, Any]) -> None:
    with pytest.raises(AgentProtocolError, match="FileInfo") as caught:
        parse_info(INFO | changes)
    assert len(caught.value.message) < 400


@pytest.mark.parametrize("missing", ["name", "type", "size", "mode", "mtime_ns"])
def test_a_description_without_a_field_is_none(missing: str) -> None:
    with pytest.raises(AgentProtocolError, match=missing):
        parse_info({key: value for key, value in INFO.items() if key != missing})


def test_events_are_read() -> None:
    event = parse_event({"type": "moved", "path": "/a", "from": "/b"})
    assert (event.type, event.path, event.source) == (FileEventType.MOVED, "/a", "/b")
    assert parse_event({"type": "overflow"}).path == ""
    for wrong in ({"type": 1, "path": "/a"}, {"path": "/a"}, {"type": "created", "path": 5}):
        with pytest.raises(AgentProtocolError, match="FileEvent"):
            parse_event(wrong)


LINES = st.lists(st.dictionaries(st.text(max_size=5), st.integers(), max_size=3), max_size=5)


@given(LINES, st.integers(1, 50))
def test_lines_are_read_in_pieces_of_any_size(values: list[dict[str, int]], size: int) -> None:
    data = b"".join(json.dumps(value).encode() + b"\n" for value in values)
    decoder = LineDecoder()
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    assert [line for piece in pieces for line in decoder.feed(piece)] == values


@pytest.mark.parametrize(
    "data", [b"[]\n", b"\n", b"5\n", b"{\n", b"[" * 60_000 + b"\n", b"{}" + b" " * MAX_LINE_BYTES + b"\n", b"\xff\n"]
)
def test_a_line_that_is_no_object_is_an_error_of_the_guest(data: bytes) -> None:
    with pytest.raises(AgentProtocolError):
        list(LineDecoder().feed(data))
    with pytest.raises(AgentProtocolError):
        parse_line(data)


def test_a_line_without_an_end_is_not_kept() -> None:
    decoder = LineDecoder()
    assert list(decoder.feed(b"x" * MAX_LINE_BYTES)) == []
    with pytest.raises(AgentProtocolError, match="line of more than"):
        list(decoder.feed(b"x"))
