"""``run``: a VM that is always removed, and ``create``."""

import os
import signal
from pathlib import Path

import pytest

from squib.artifacts.building import Build
from squib.drivers.base import Problem
from squib.errors import DependencyMissing
from squib.kernels import catalog
from tests.fakes.recorder import Recorder
from tests.fakes.served import Served
from tests.unit.cli.conftest import Squib

LIFE = ["POST /kernels", "POST /images", "POST /vms", "POST /vms/VM/start", "POST /vms/VM/exec", "DELETE /vms/VM"]


def names(squib: Squib) -> list[str]:
    return [vm["name"] for vm in squib("ls", "--json").json]


@pytest.mark.parametrize(
    ("words", "argv", "out", "status"),
    [
        (["--", "exit", "3"], ["exit", "3"], b"", 3),
        (["echo", "-c", "print(6*7)"], ["echo", "-c", "print(6*7)"], b"-c print(6*7)\n", 0),
        (["echo", "--json"], ["echo", "--json"], b"--json\n", 0),
    ],
)
def test_a_vm_is_made_used_and_removed(
    words: list[str], argv: list[str], out: bytes, status: int, squib: Squib, engine: Served, requests: Recorder
) -> None:
    ended = squib("run", *words)
    assert (ended.status, ended.out) == (status, out)
    vm_id = engine.rig.driver.launched[-1].vm_id
    assert requests.made == [what.replace("VM", vm_id) for what in LIFE]
    assert requests.held == [f"POST /vms/{vm_id}/hold"]
    assert requests.body(f"POST /vms/{vm_id}/exec")["argv"] == argv
    assert names(squib) == ["web"]


def test_keep_leaves_it_and_says_its_name(squib: Squib, host_files: list[str], requests: Recorder) -> None:
    ended = squib("run", *host_files, "--keep", "--name", "kept", "true")
    assert "squib rm kept" in ended.err
    assert names(squib) == ["web", "kept"]
    assert requests.held == []


@pytest.mark.parametrize(
    ("behaviour", "said", "status"),
    [
        ("--ok", ["nosuch: not found in PATH"], 127),
        ("--die", ["the VMM ended with status 3", "  fake console\n  last line\n"], 1),
    ],
)
def test_it_is_removed_after_an_error(
    behaviour: str, said: list[str], status: int, squib: Squib, engine: Served, host_files: list[str]
) -> None:
    engine.rig.driver.behaviour = behaviour
    ended = squib("run", *host_files, "nosuch")
    assert ended.status == status
    for text in said:
        assert text in ended.err
    assert names(squib) == ["web"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_is_removed_when_we_are_ended(
    number: signal.Signals, squib: Squib, host_files: list[str], requests: Recorder
) -> None:
    def send(what: str) -> None:
        if what.endswith(("/exec", "/signal")):
            os.kill(os.getpid(), number)

    requests.before_answer = send
    assert squib("run", *host_files, "sleep", "100").status == 128 + number
    assert names(squib) == ["web"]


@pytest.mark.parametrize("step", range(len(LIFE)), ids=LIFE)
def test_it_is_removed_if_we_are_ended_at_any_step(step: int, squib: Squib, requests: Recorder) -> None:
    def end(what: str) -> None:
        if len(requests.made) == step + 1 and what == requests.made[-1]:
            os.kill(os.getpid(), signal.SIGTERM)

    requests.before_answer = end
    assert squib("run", "true").status in (0, 128 + signal.SIGTERM)
    assert len(requests.made) > step
    assert names(squib) == ["web"]


def test_a_failed_build_makes_no_vm(squib: Squib, requests: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(build: Build, target: Path) -> dict[str, str]:
        raise DependencyMissing("mmdebstrap is not installed", hint="squib doctor --fix")

    monkeypatch.setattr(catalog, "_make", fail)
    ended = squib("run", "true")
    assert ended.status == 1
    assert ended.err == "squib: mmdebstrap is not installed\nhint: squib doctor --fix\n"
    assert requests.made == ["POST /kernels"]


def test_the_users_own_kernel_and_root_need_no_build(
    squib: Squib, engine: Served, host_files: list[str], requests: Recorder
) -> None:
    squib("run", *host_files, "true")
    vm_id = engine.rig.driver.launched[-1].vm_id
    assert requests.made == [what.replace("VM", vm_id) for what in LIFE[2:]]


def test_a_command_is_needed(squib: Squib, requests: Recorder) -> None:
    ended = squib("run", "--memory", "512")
    assert (ended.status, requests.calls) == (2, [])
    assert "hint: squib run -- COMMAND" in ended.err


def test_the_image_is_built_with_progress_on_standard_error(squib: Squib) -> None:
    ended = squib("run", "true")
    assert "squib: image base: squashfs\n" in ended.err
    assert ended.out == b""


def test_json_is_silent_but_for_the_result(squib: Squib) -> None:
    ended = squib("run", "--json", "--keep", "true")
    assert ended.err == ""
    assert ended.json["exit_code"] == 0
    assert ended.json["vm"] in squib("ls", "-q").text.split()


CREATE = (
    "create --name new --project ci --cpus 2 --memory 1g --disk 20gb --runtime python3.13 --boot-args quiet "
    "--nested -e A=1 --boot-timeout 2m"
)


def test_create_passes_its_flags_on_and_prints_the_id(squib: Squib, engine: Served, requests: Recorder) -> None:
    engine.rig.driver.nested = True
    ended = squib(*CREATE.split())
    assert (ended.status, ended.text) == (0, engine.rig.driver.launched[-1].vm_id + "\n")
    assert requests.body("POST /vms") == {
        "config": {
            "name": "new",
            "project": "ci",
            "runtime": "python3.13",
            "vcpu_count": 2,
            "mem_size_mib": 1024,
            "disk_size_mib": 20480,
            "boot_args": "quiet",
            "nested": True,
            "env_vars": {"A": "1"},
        },
        "start": True,
        "boot_timeout_s": 120,
    }


def test_create_makes_paths_absolute(
    squib: Squib, host_files: list[str], requests: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, kernel, _, rootfs = host_files
    folder = Path(kernel).parent
    monkeypatch.chdir(folder)
    assert squib("create", "--no-start", "--kernel", "kernel", "--rootfs", f"../{folder.name}/rootfs").status == 0
    config = requests.body("POST /vms")["config"]
    assert (config["kernel_path"], config["rootfs_path"]) == (kernel, rootfs)


def test_create_may_leave_it_stopped(squib: Squib, requests: Recorder) -> None:
    assert squib("create", "--no-start", "--json").json["state"] == "created"
    assert requests.body("POST /vms")["start"] is False


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--memory 3", "--memory: "),
        ("--memory lots", "--memory: invalid size 'lots'"),
        ("--disk 1", "--disk: "),
        ("--disk 1.3m", "--disk: invalid size '1.3m'"),
        ("--cpus 0", "--vcpus: "),
        ("--vcpus 1000", "--vcpus: "),
        ("--name a/b", "--name: invalid name 'a/b'"),
        ("--project ..", "--project: invalid name '..'"),
        ("-e 1A=x", "--env: invalid environment variable '1A'"),
        ("--boot-args a\nb", "--boot-args: "),
        ("--boot-timeout soon", "--boot-timeout: invalid time 'soon'"),
        ("--runtime base --rootfs x", "--runtime and --rootfs"),
    ],
)
@pytest.mark.parametrize("verb", [["create"], ["run"]])
def test_bad_values_are_refused_by_the_name_of_their_flag(
    verb: list[str], flags: str, said: str, squib: Squib, requests: Recorder
) -> None:
    ended = squib(*verb, *flags.split(" "), *(["true"] if verb == ["run"] else []))
    assert (ended.status, requests.calls) == (2, [])
    assert said in ended.err


def test_a_secret_in_the_environment_is_not_shown_in_an_error(squib: Squib) -> None:
    assert "hunter2" not in squib("create", "-e", "A=hunter2\0", "--cpus", "0").err


def test_a_name_that_is_taken_is_an_error(squib: Squib, host_files: list[str]) -> None:
    ended = squib("run", *host_files, "--name", "web", "true")
    assert ended.status == 1
    assert "'web' is already the ID or name of" in ended.err
    assert names(squib) == ["web"]


def test_a_driver_that_cannot_run_the_vm_is_an_error_before_anything_is_built(
    squib: Squib, engine: Served, requests: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Problem("KVM cannot run a guest here: it is a fake", hint="use another")
    monkeypatch.setattr(engine.rig.driver, "unusable", problem)
    for command in (["create", "--driver", "fake"], ["run", "--driver", "fake", "true"]):
        ended = squib(*command)
        assert ended.status == 2
        assert ended.err == (
            "squib: the driver fake cannot run this VM: KVM cannot run a guest here: it is a fake\nhint: use another\n"
        )
    assert requests.made == ["POST /driver", "POST /driver"]
