"""``docs/api.md`` names every route and every error."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from squib.api.errors import HTTP_STATUS
from tests.fakes.asgi import Request

TEXT = (Path(__file__).parents[3] / "docs" / "api.md").read_text()


def spellings(method: str, path: str) -> Iterator[str]:
    """How the tables may write a route: in full, or with its first parts as ``…``."""
    path = path.replace("{process_id}", "{id}")
    yield f"`{method} {path}"
    parts = path.split("/")
    yield from (f"`{method} …/{'/'.join(parts[first:])}" for first in range(4, len(parts)))


def test_every_route_is_described(answer: Callable[..., Request]) -> None:
    paths = answer("GET", "/v1/openapi.json").json["paths"]
    routes = [(method.upper(), path) for path, item in paths.items() for method in item]
    ends = ("`", "?")
    missing = [
        route for route in routes if not any(spelling + end in TEXT for spelling in spellings(*route) for end in ends)
    ]
    assert missing == [] and len(routes) > 30


def test_every_error_is_in_the_row_of_its_status() -> None:
    rows = re.findall(r"^\| (\d{3}) \| (.*) \|$", TEXT, re.MULTILINE)
    assert {code: int(status) for status, codes in rows for code in re.findall(r"`(\w+)`", codes)} == HTTP_STATUS


def test_lines_are_short() -> None:
    assert [line for line in TEXT.splitlines() if len(line) > 100 and not line.startswith("|")] == []
