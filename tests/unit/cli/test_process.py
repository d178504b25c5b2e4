"""``python -m squib`` as a process: its standard streams and its status."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # each is a process

SQUIB = [sys.executable, "-m", "squib"]


def run(*arguments: str, script: str = '"$@"') -> subprocess.CompletedProcess[str]:
    """Run squib as a shell starts it, such as with ``"$@" >&-``."""
    return subprocess.run(
        ["sh", "-c", script, "sh", *SQUIB, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"SQUIB_URL": "http://127.0.0.1:9"},
    )


@pytest.mark.parametrize(("arguments", "status"), [(["--version"], 0), (["ls", "--bogus"], 2), (["ls"], 1)])
def test_the_status_is_that_of_the_process(arguments: list[str], status: int) -> None:
    assert run(*arguments).returncode == status


def test_an_engine_that_does_not_answer_is_an_error_without_a_traceback() -> None:
    done = run("ls")
    assert done.stderr.startswith("squib: no engine answers at http://127.0.0.1:9")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("closed", [">&-", "<&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_may_be_missing(closed: str) -> None:
    done = run("--version", script=f'"$@" {closed}')
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["--version"], ["--help"]])
def test_output_that_cannot_be_written_is_an_error(arguments: list[str]) -> None:
    done = run(*arguments, script='"$@" > /dev/full')
    assert (done.returncode, done.stderr) == (1, "squib: No space left on device\n")


def test_output_that_nobody_reads_ends_quietly() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = subprocess.run([*SQUIB, "--help"], stdout=write_end, stderr=subprocess.PIPE)
    finally:
        os.close(write_end)
    assert done.returncode != 0
    assert done.stderr == b""
