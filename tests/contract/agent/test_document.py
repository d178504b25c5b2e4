"""The document and the suite name the same things, so that neither gains what the other lacks."""

import re
from pathlib import Path

HERE = Path(__file__).parent
DOCUMENT = (HERE.parents[2] / "protocol" / "agent.md").read_text()
SUITE = "".join(path.read_text() for path in HERE.glob("test_*.py") if path != Path(__file__))


def test_every_error_code_is_tested() -> None:
    codes = re.findall(r"^\| `(\w+)` \| [45]\d\d \|", DOCUMENT, re.MULTILINE)
    assert len(codes) == 21
    assert [code for code in codes if f'"{code}"' not in SUITE] == []


def test_every_endpoint_is_tested() -> None:
    endpoints = re.findall(r"^### `([A-Z]+) /v1/(\w+)(?:/(?:\{id\}/?)?(\w*))?", DOCUMENT, re.MULTILINE)
    assert len(endpoints) == 23
    assert [end for end in endpoints if (end[2] or end[1]) not in SUITE] == []
