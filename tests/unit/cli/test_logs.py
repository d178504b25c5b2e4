"""``logs``: raw to a file, harmless on a terminal."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from squib.cli.args import options
from squib.cli.commands import logs
from squib.paths import Home
from squib.sdk.client import EngineClient
from tests.fakes.api import FakeAPI
from tests.unit.cli.conftest import Squib

HOSTILE = b"\x1b[31mred\x07\r\n\xff\xc3\xa4 ok\r\r\n"


def test_the_console_passes_raw_to_what_is_no_terminal(squib: Squib, api: FakeAPI) -> None:
    api.logs = [HOSTILE]
    assert squib("logs", "-n", "5", "web").out == HOSTILE
    assert api.made == ["GET /vms/web/logs?follow=false&lines=5"]


def test_follow_asks_for_more(squib: Squib, api: FakeAPI) -> None:
    api.logs = [b"a", b"b"]
    assert squib("logs", "-f", "web").out == b"ab"
    assert api.made == ["GET /vms/web/logs?follow=true"]


def test_json_is_an_object_with_the_text(squib: Squib, api: FakeAPI) -> None:
    api.logs = [HOSTILE]
    assert squib("--json", "logs", "web").json == {"vm": "web", "log": HOSTILE.decode(errors="replace")}


@pytest.mark.anyio
@pytest.mark.parametrize("size", [1, 2, 3, 100])
async def test_a_terminal_is_not_steered_wherever_chunks_end(size: int) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(HOSTILE), size):
            yield HOSTILE[start : start + size]

    shown = b"".join([chunk async for chunk in logs._made_printable(chunks())])
    assert shown.decode() == "␛[31mred␇\n�ä ok\n"


@pytest.mark.parametrize("line", ["logs", "logs web --engine", "logs -f --json web", "logs -n -1 web"])
def test_what_makes_no_sense_is_refused(line: str, squib: Squib, api: FakeAPI) -> None:
    assert squib(*line.split()).status == 2
    assert api.calls == []


def test_the_engines_log_is_read_without_an_engine(
    squib: Squib, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path)
    home.engine_log.write_bytes(b"one\ntwo\n")
    monkeypatch.setattr(options, "connect", lambda: EngineClient(home=home))
    assert squib("logs", "--engine", "-n", "1").out == b"two\n"
    assert not home.engine_socket.exists()


def test_the_engines_log_is_asked_of_an_engine_elsewhere(squib: Squib, api: FakeAPI) -> None:
    api.logs = [b"log\n"]
    assert squib("logs", "--engine").out == b"log\n"
    assert api.made == ["GET /engine/logs?follow=false"]
