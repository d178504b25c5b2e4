"""The command line: how a Firecracker starts, and how it ends if it cannot."""

import re
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.contract.firecracker.vmm import binary, running, wait_for_api

UNEXPECTED = "Found argument '{}' which wasn't expected, or isn't valid in this context."


@pytest.fixture(params=["stub-1.16.1", "stub-1.10.1", "real"])
def program(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    monkeypatch.chdir(tmp_path)
    return binary(request.param, tmp_path / "bin")


def run(path: Path, *arguments: str) -> tuple[int, str, str]:
    """Run the program to its end; return its status, its log without the times, and what it says on stderr."""
    ended = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=30, check=False)
    return ended.returncode, re.sub(r"^\S+ \[\S+\] ", "", ended.stdout, flags=re.MULTILINE), ended.stderr


def test_it_prints_its_version(program: tuple[Path, str]) -> None:
    path, version = program
    expected = f"Firecracker v{version}\n\nFirecracker exiting successfully. exit_code=0\n"
    assert run(path, "--version") == (0, expected, "")
    assert run(path, "--nonsense", "--version") == (0, expected, "")


@pytest.mark.parametrize(
    ("arguments", "debug", "message"),
    [
        (["--nonsense"], 'UnexpectedArgument("nonsense")', UNEXPECTED.format("nonsense")),
        (["nonsense"], 'UnexpectedArgument("nonsense")', UNEXPECTED.format("nonsense")),
        (["--id"], 'MissingValue("id")', "The argument 'id' requires a value, but none was supplied."),
        (["--id", "--level"], 'MissingValue("id")', "The argument 'id' requires a value, but none was supplied."),
        (["--id", "a", "--id", "b"], 'DuplicateArgument("id")', "The argument 'id' was provided more than once."),
        (["--no-api"], 'MissingArgument("config-file")', "Argument 'config-file' required, but not found."),
        (
            ["--no-seccomp", "--seccomp-filter", "x"],
            'ForbiddenArgument("no-seccomp", "seccomp-filter")',
            "Argument 'seccomp-filter' cannot be used together with argument 'no-seccomp'.",
        ),
    ],
)
def test_wrong_arguments_end_it(program: tuple[Path, str], arguments: list[str], debug: str, message: str) -> None:
    log = (
        f"Arguments parsing error: {message} \\n\\nFor more information try --help.\n"
        "Firecracker exiting with error. exit_code=153\n"
    )
    assert run(program[0], *arguments) == (153, log, f"Error: ParseArguments({debug})\n")


def test_pci_is_an_argument_since_1_13(program: tuple[Path, str]) -> None:
    path, version = program
    status, _, error = run(path, "--enable-pci", "--level", "loud")
    if tuple(map(int, version.split(".")[:2])) >= (1, 13):
        assert (status, error) == (152, 'Error: InvalidLogLevel(LevelFilterFromStrError("loud"))\n')
    else:
        assert (status, error) == (153, 'Error: ParseArguments(UnexpectedArgument("enable-pci"))\n')


@pytest.mark.parametrize("arguments", [["--id", "a_b"], ["--http-api-max-payload-size", "x", "--api-sock", "api.sock"]])
def test_values_that_cannot_be_used_abort_it(program: tuple[Path, str], arguments: list[str]) -> None:
    assert run(program[0], *arguments)[0] == -signal.SIGABRT


def test_a_socket_that_exists_is_refused(program: tuple[Path, str]) -> None:
    path, _ = program
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind("api.sock")
    status, log, error = run(path, "--api-sock", "api.sock")
    assert status == 1
    assert "Failed to open the API socket at: api.sock. Check that it is not already used.\n" in log
    assert error == 'Error: RunWithApi(FailedToBindSocket("api.sock"))\n'


def test_a_socket_that_cannot_be_made_is_an_error(program: tuple[Path, str]) -> None:
    status, log, _ = run(program[0], "--api-sock", "none/api.sock")
    assert status == 1
    assert "Failed to bind and run the HTTP server: IO error: No such file or directory (os error 2)" in log


def test_log_and_metrics_go_where_the_arguments_say(program: tuple[Path, str], tmp_path: Path) -> None:
    arguments = ("--log-path", "log", "--level", "Debug", "--show-level", "--metrics-path", "metrics", "--boot-timer")
    argv = [program[0], "--id", "vm-1", "--api-sock", "api.sock", *arguments]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            wait_for_api(tmp_path / "api.sock")
            assert re.search(r"\[vm-1:main:INFO\] Running Firecracker v1\.", Path("log").read_text())
            assert Path("metrics").exists()
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL


def test_its_own_output_is_its_log(program: tuple[Path, str], tmp_path: Path) -> None:
    path, version = program
    with running(path, version, tmp_path) as vmm:
        vmm.call("GET", "/version")
        assert vmm.process
        vmm.process.terminate()
        assert vmm.process.stdout
        output = vmm.process.stdout.read().decode()
    assert re.search(r'\[vm-1:fc_api\] The API server received a Get request on "/version"\.', output)
    assert vmm.process.returncode == -signal.SIGTERM


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGSEGV, 150), (signal.SIGHUP, 156), (signal.SIGSYS, 2), (signal.SIGINT, -2)]
)
def test_signals_end_it(program: tuple[Path, str], tmp_path: Path, number: int, status: int) -> None:
    path, version = program
    with running(path, version, tmp_path) as vmm:
        vmm.call("GET", "/version")
        assert vmm.process
        assert vmm.process.stdout
        vmm.process.send_signal(number)
        assert vmm.process.wait(30) == status
        logged = (
            f"Shutting down VM after intercepting signal {int(number)}, code 0." in vmm.process.stdout.read().decode()
        )
        assert logged == (status > 0)
