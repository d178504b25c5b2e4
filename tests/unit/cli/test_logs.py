"""``logs``: raw to a file, harmless on a terminal."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from squib.cli.commands import logs
from squib.paths import Home
from tests.fakes.recorder import Recorder
from tests.fakes.served import Served
from tests.unit.cli.conftest import Squib

HOSTILE = b"\x1b[31mred\x07\r\n\xff\xc3\xa4 ok\r\r\n"


@pytest.fixture
def console(engine: Served) -> Path:
    """What the VM ``web`` has printed."""
    path = engine.rig.console_log(engine.vm_id)
    path.write_bytes(b"first\n" + HOSTILE)
    return path


def test_the_console_passes_raw_to_what_is_no_terminal(squib: Squib, console: Path) -> None:
    assert squib("logs", "web").out == b"first\n" + HOSTILE
    assert squib("logs", "-n", "3", "web").out == HOSTILE


def test_follow_goes_on_until_the_vm_ends(
    squib: Squib, engine: Served, host_files: list[str], requests: Recorder
) -> None:
    vm_id = squib("create", *host_files, "--no-start").text.strip()
    engine.rig.console_log(vm_id).write_bytes(HOSTILE)
    assert squib("logs", "-f", vm_id).out == HOSTILE
    assert requests.made[-1] == f"GET /vms/{vm_id}/logs?follow=true"


def test_json_is_an_object_with_the_text(squib: Squib, console: Path) -> None:
    text = HOSTILE.decode(errors="replace")
    assert squib("--json", "logs", "-n", "3", "web").json == {"vm": "web", "log": text}


@pytest.mark.anyio
@pytest.mark.parametrize("size", [1, 2, 3, 100])
async def test_a_terminal_is_not_steered_wherever_chunks_end(size: int) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(HOSTILE), size):
            yield HOSTILE[start : start + size]

    shown = b"".join([chunk async for chunk in logs._made_printable(chunks())])
    assert shown.decode() == "␛[31mred␇\n�ä ok\n"


@pytest.mark.parametrize("line", ["logs", "logs web --engine", "logs -f --json web", "logs -n -1 web"])
def test_what_makes_no_sense_is_refused(line: str, squib: Squib, requests: Recorder) -> None:
    assert squib(*line.split()).status == 2
    assert requests.calls == []


def test_the_engines_log_is_read_without_an_engine(
    squib: Squib, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path)
    home.engine_log.write_bytes(b"one\ntwo\n")
    monkeypatch.setenv("SQUIB_HOME", str(tmp_path))
    assert squib("logs", "--engine", "-n", "1").out == b"two\n"
    assert not home.engine_socket.exists()


def test_the_engines_log_is_asked_of_an_engine_that_runs(squib: Squib, engine: Served, requests: Recorder) -> None:
    engine.rig.home.engine_log.write_bytes(b"one\ntwo\n")
    assert squib("logs", "--engine", "-n", "1").out == b"two\n"
    assert requests.made == ["GET /engine/logs?follow=false&lines=1"]
