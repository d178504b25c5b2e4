"""Environments in which squib is started by accident: each is a clear message, or no difference at all."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from squib import InvalidArgument
from squib.api.daemon import idle_exit_from_environment
from squib.cli.args.units import parse_duration_s
from squib.paths import Home


def squib(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-m", "squib", *arguments], env=os.environ | env, capture_output=True)


def test_an_output_that_cannot_express_a_character_gets_an_escape(tmp_path: Path) -> None:
    env = {"SQUIB_HOME": str(tmp_path), "PYTHONIOENCODING": "ascii"}
    refused = squib("stop", "--timeout", "é", "web", env=env)
    assert refused.returncode == 2
    assert refused.stderr.startswith(b"squib: --timeout: invalid time '\\xe9'\n")


@pytest.mark.parametrize("command", [("ls",), ("doctor",), ("run", "true"), ("version",)])
def test_a_home_that_cannot_be_found_is_named(command: tuple[str, ...]) -> None:
    refused = squib(*command, env={"SQUIB_HOME": "~nouser/x"})
    assert refused.returncode == 2
    assert refused.stderr.decode() == (
        "squib: SQUIB_HOME is '~nouser/x': that user has no home directory\nhint: export SQUIB_HOME=/some/dir\n"
    )


def test_a_user_without_a_home_directory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SQUIB_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(InvalidArgument, match="HOME is not set") as caught:
        Home.from_environment()
    assert caught.value.hint == "export SQUIB_HOME=/some/dir"


@pytest.mark.parametrize("value", ["abc", "-1", "nan", "inf", "1e99", "60s"])
def test_a_wrong_idle_exit_names_the_variable_and_its_value(value: str, tmp_path: Path) -> None:
    refused = squib("ls", env={"SQUIB_HOME": str(tmp_path / "home"), "SQUIB_IDLE_EXIT_S": value})
    assert refused.returncode == 2
    assert f"SQUIB_IDLE_EXIT_S is {value!r}, not a number of seconds" in refused.stderr.decode()


@pytest.mark.parametrize(("value", "seconds"), [("0", 1), ("0.5", 1), ("", 60), ("90", 90)])
def test_an_engine_lives_long_enough_for_the_client_that_started_it(
    value: str, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQUIB_IDLE_EXIT_S", value)
    assert idle_exit_from_environment() == seconds


@pytest.mark.parametrize("flag", ["--timeout", "--boot-timeout"])
def test_a_time_that_is_too_long_names_the_flag(flag: str) -> None:
    with pytest.raises(InvalidArgument, match=f"{flag}: '2h' is too long") as caught:
        parse_duration_s("2h", flag=flag, max_s=3600)
    assert caught.value.hint == f"the longest time is {flag} 3600 (seconds)"
    assert parse_duration_s("1h", flag=flag, max_s=3600) == 3600
    assert parse_duration_s("9999d", flag=flag) < math.inf
