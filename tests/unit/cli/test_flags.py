"""Flags: where they may stand, which are refused, and what help says."""

import subprocess
import sys

import pytest

from squib.cli.commands import NAMES
from tests.fakes.recorder import Recorder
from tests.unit.cli.conftest import Squib


@pytest.mark.parametrize("line", ["--json ls", "ls --json", "--json ls --json", "list --json", "--verbose ls --json"])
def test_json_may_stand_before_the_command_and_after_it(line: str, squib: Squib) -> None:
    ended = squib(*line.split())
    assert ended.status == 0
    assert [vm["name"] for vm in ended.json] == ["web"]


@pytest.mark.parametrize("line", ["--json image ls", "image --json ls", "image ls --json"])
def test_json_may_stand_at_every_level_of_a_group(line: str, squib: Squib) -> None:
    squib("image", "build", "base")
    assert squib(*line.split()).json[0]["name"] == "base"


@pytest.mark.parametrize("line", ["--verbose start web", "start --verbose web", "start -v web"])
def test_verbose_may_stand_before_the_command_and_after_it(line: str, squib: Squib) -> None:
    assert "starting VM web" in squib(*line.split()).err


@pytest.mark.parametrize(
    "line",
    [
        "--bogus ls", "ls --bogus", "ls -x", "exec --bogus web ls", "run --bogus -- ls", "create --connect",
        "exec -t web sh", "ls extra", "create extra", "version extra", "serve extra", "doctor extra", "image ls extra",
        "kernel build extra", "bogus", "image", "image bogus", "start", "stop", "rm", "inspect", "image build",
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_and_nothing_is_done(line: str, squib: Squib, requests: Recorder) -> None:
    ended = squib(*line.split())
    assert ended.status == 2
    assert ended.out == b""
    assert ended.err.startswith("squib: ") and "hint: squib" in ended.err
    assert requests.calls == []


@pytest.mark.parametrize("line", ["--json ls --bogus", "ls --bogus --json"])
def test_a_refused_command_line_is_reported_as_json_if_it_asks_for_json(line: str, squib: Squib) -> None:
    ended = squib(*line.split())
    assert ended.error["code"] == "invalid_argument"
    assert "--bogus" in ended.error["message"]


def test_a_mistyped_command_is_guessed(squib: Squib) -> None:
    assert "Did you mean 'create'" in squib("craete").err


def test_without_arguments_help_is_shown(squib: Squib) -> None:
    ended = squib()
    assert ended.status == 0
    assert ended.text.startswith("Usage: squib")


def test_help_lists_every_command_with_its_aliases(squib: Squib) -> None:
    text = squib("--help").text
    assert all(f"\n  {name} " in text for name in NAMES)
    assert "(ls)" in text and "(rm)" in text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_has_help(name: str, flag: str, squib: Squib) -> None:
    ended = squib(name, flag)
    assert ended.status == 0
    assert ended.text.startswith(f"Usage: squib {name}")
    assert "--json" in ended.text


def test_version_is_a_flag_too(squib: Squib, requests: Recorder) -> None:
    assert squib("--version").text.startswith("squib ")
    assert requests.calls == []


def test_importing_the_command_line_imports_nothing_slow() -> None:
    code = "import sys; from squib.cli.main import run; run(['--help']); print(sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage:")
    for slow in ("asyncio", "httpx", "pydantic", "rich", "fastapi", "uvicorn"):
        assert f"'{slow}'" not in done.stderr


GROUPS = {"env": ["set", "list", "unset"], "image": ["list", "build", "remove", "pack"], "kernel": ["list", "build"]}


@pytest.mark.parametrize(
    "words", [[name, *sub] for name in NAMES for sub in ([], *([s] for s in GROUPS.get(name, [])))]
)
def test_help_starts_with_a_sentence_on_one_line_and_shows_no_python_types(words: list[str], squib: Squib) -> None:
    text = squib(*words, "--help").text
    first = text.splitlines()[2]
    assert len(first) < 80 and first.endswith("."), first
    assert "<str>" not in text and "<list" not in text and "{VM}" not in text


def test_an_alias_names_the_other_spelling(squib: Squib) -> None:
    assert "Alias: rm\n" in squib("remove", "--help").text.replace("  ", "")
    assert "Alias: remove\n" in squib("rm", "--help").text.replace("  ", "")
