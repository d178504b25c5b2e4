"""The command line as a person uses it, as whole processes against real VMs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from squib import VM, VMState
from squib.paths import Home
from tests.vm.conftest import end_engine, engine_pids, resources

BAD_NAMES = ["..", ".", "a/b", "-rf", "$(x)", "`x`", "x" * 300, "", "a b", "a\nb", "ü"]


def squib(*words: str, input: bytes | None = None, timeout_s: float = 60) -> subprocess.CompletedProcess[bytes]:
    """Run ``squib`` to its end."""
    command = [sys.executable, "-m", "squib", *words]
    return subprocess.run(command, input=input, capture_output=True, timeout=timeout_s, check=False)


def ok(*words: str, input: bytes | None = None) -> str:
    """What ``squib`` prints when it succeeds."""
    done = squib(*words, input=input)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def test_run_passes_output_and_exit_code_on_and_leaves_nothing(home: Home) -> None:
    done = squib("run", "--", "sh", "-c", "uname -r; echo problem >&2; exit 3")
    assert done.returncode == 3
    assert done.stdout.decode().strip() not in ("", os.uname().release)
    assert done.stderr.endswith(b"problem\n")
    for _ in range(2):
        ok("run", "--", "true")
    assert json.loads(ok("ls", "--json")) == []
    left = resources(home)
    assert (left.processes, left.directories, left.leases, left.cgroups) == ([], [], [], [])


def test_the_words_after_run_are_the_commands(home: Home) -> None:
    assert ok("run", "python3", "-c", "import sys; print(sys.argv[1:], 6*7)", "--json", "-x") == "['--json', '-x'] 42\n"


def test_run_keep_leaves_the_vm(home: Home) -> None:
    ok("run", "--keep", "--name", "kept", "--", "touch", "/root/file")
    try:
        assert ok("exec", "kept", "ls", "-la", "/root/file").startswith("-rw")
    finally:
        ok("rm", "kept")


def test_a_vms_life(home: Home) -> None:
    vm_id = ok("create", "--name", "web", "--cpus", "2", "--memory", "200", "--disk", "1gb", "--project", "p").split()[
        0
    ]
    try:
        (row,) = json.loads(ok("--json", "ls", "--project", "p"))
        assert (row["vm_id"], row["name"], row["state"], row["vcpu_count"]) == (vm_id, "web", "running", 2)
        assert "web" in ok("list")
        assert ok("exec", "web", "hostname") == "web\n"
        assert ok("exec", "-e", "A=1", "-w", "/usr", "--user", "nobody", "web", "sh", "-c", "echo $A; pwd; id -un") == (
            "1\n/usr\nnobody\n"
        )
        ok("stop", "web")
        refused = squib("exec", "web", "true")
        assert refused.returncode == 1
        assert b"web is stopped" in refused.stderr and b"squib start web" in refused.stderr
        ok("start", vm_id)
        assert json.loads(ok("inspect", "web"))[0]["state"] == "running"
        assert "squib-agent: ready" in ok("logs", "web")
    finally:
        ok("rm", "web")
    assert json.loads(ok("ls", "--json")) == []


@pytest.fixture(scope="module")
def name(home: Home) -> Iterator[str]:
    with VM(name="shared") as vm:
        yield vm.name


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -KILL $$"], 137),
        (["nosuchprogram"], 127),
        (["/etc/passwd"], 126),
    ],
)
def test_exec_exit_codes(name: str, words: list[str], code: int) -> None:
    assert squib("exec", name, *words).returncode == code


def test_exec_timeout_is_124(name: str) -> None:
    assert squib("exec", "--timeout", "0.5", name, "sleep", "100").returncode == 124


def test_exec_passes_bytes_through(name: str) -> None:
    data = os.urandom(1 << 20)
    done = squib("exec", "-i", name, "cat", input=data)
    assert (done.returncode, done.stdout) == (0, data)


def test_a_closed_pipe_ends_the_command(name: str) -> None:
    reader = subprocess.run(
        ["head", "-c", "4"],
        stdin=(
            writer := subprocess.Popen(
                [sys.executable, "-m", "squib", "exec", name, "yes"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        ).stdout,
        capture_output=True,
        check=True,
    )
    assert reader.stdout == b"y\ny\n"
    assert writer.stdout and writer.stderr
    writer.stdout.close()
    assert writer.wait(timeout=10) == 128 + signal.SIGPIPE
    assert writer.stderr.read() == b""
    writer.stderr.close()
    assert squib("exec", name, "pgrep", "yes").returncode == 1


def test_ctrl_c_reaches_the_command(name: str) -> None:
    script = "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.1; done"
    with subprocess.Popen(
        [sys.executable, "-m", "squib", "exec", name, "sh", "-c", script], stdout=subprocess.PIPE
    ) as client:
        assert client.stdout and client.stdout.readline() == b"ready\n"
        client.send_signal(signal.SIGINT)
        assert client.stdout.read() == b"caught\n"
        assert client.wait(timeout=10) in (9, 130)


def test_a_run_that_is_terminated_removes_its_vm(home: Home) -> None:
    before = resources(home).vms
    command = [sys.executable, "-m", "squib", "run", "--", "sh", "-c", "echo ready; sleep 1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as client:
        assert client.stdout and client.stdout.readline() == b"ready\n"
        client.send_signal(signal.SIGTERM)
        client.wait(timeout=20)
    assert resources(home).vms == before


def test_a_run_that_is_killed_leaves_no_vm(home: Home) -> None:
    before = resources(home).vms
    command = [sys.executable, "-m", "squib", "run", "--", "sh", "-c", "echo ready; sleep 1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as client:
        assert client.stdout and client.stdout.readline() == b"ready\n"
        client.kill()
    deadline = time.monotonic() + 10
    while resources(home).directories != before:
        assert time.monotonic() < deadline, "the VM of a killed client is still there"
        time.sleep(0.02)


@pytest.mark.parametrize("bad", BAD_NAMES)
def test_bad_names_are_refused_everywhere(home: Home, bad: str) -> None:
    before = resources(home)
    commands = [
        ["inspect", "--", bad],
        ["start", "--", bad],
        ["stop", "--", bad],
        ["rm", "--", bad],
        ["exec", "--", bad, "true"],
        ["logs", "--", bad],
        ["create", f"--name={bad}"],
        ["run", f"--name={bad}", "--", "true"],
        ["image", "rm", "--", bad],
    ]
    for words in commands:
        done = squib(*words)
        assert done.returncode == 2, (words, done.stderr)
        assert done.stderr, words
    assert resources(home) == before


def test_json_errors(home: Home) -> None:
    done = squib("--json", "inspect", "nosuch")
    assert done.returncode == 1
    assert json.loads(done.stderr)["error"]["code"] == "not_found"


def test_a_remote_engine_by_url_and_token(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`squib serve` with TCP; the SDK reaches it with the same code."""
    end_engine(home)
    command = [sys.executable, "-m", "squib", "--json", "serve", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            line = server.stdout.readline()
            assert line, home.engine_log.read_text()[-4000:]  # which engine was there, and who had started it
            ready = json.loads(line)
            monkeypatch.setenv("SQUIB_HOME", str(tmp_path / "unused"))
            monkeypatch.setenv("SQUIB_URL", ready["url"])
            refused = squib("ls")
            assert refused.returncode == 1 and b"token" in refused.stderr
            monkeypatch.setenv("SQUIB_TOKEN", ready["token"])
            with VM() as vm:
                assert vm.run("echo remote").output == "remote\n"
                assert vm.status is VMState.RUNNING
            assert not (tmp_path / "unused").exists()
        finally:
            server.terminate()
            server.wait(timeout=20)


def test_the_first_command_starts_the_engine(home: Home) -> None:
    end_engine(home)
    assert json.loads(ok("version", "--json"))["engine"] is None
    ok("ls")
    assert [json.loads(ok("version", "--json"))["engine"]["pid"]] == engine_pids(home)
