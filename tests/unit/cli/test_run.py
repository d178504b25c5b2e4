"""``run``: a VM that is always removed, and ``create``."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from squib.errors import BootFailed, CommandNotFound, DependencyMissing, NameTaken
from tests.fakes.api import FakeAPI, ends
from tests.unit.cli.conftest import Squib

BUILD = ["POST /kernels", "POST /images"]
LIFE = [*BUILD, "POST /vms", "POST /vms/vm-new/start", "POST /vms/vm-new/exec", "DELETE /vms/vm-new"]


@pytest.mark.parametrize(
    ("words", "argv"),
    [
        (["--", "sh", "-c", "exit 3"], ["sh", "-c", "exit 3"]),
        (["python3", "-c", "print(6*7)"], ["python3", "-c", "print(6*7)"]),
        (["ls", "--json"], ["ls", "--json"]),
    ],
)
def test_a_vm_is_made_used_and_removed(words: list[str], argv: list[str], squib: Squib, api: FakeAPI) -> None:
    api.script = ends(3, stdout=b"hello\n")
    ended = squib("run", *words)
    assert (ended.status, ended.out) == (3, b"hello\n")
    assert api.made == LIFE
    assert api.held == ["POST /vms/vm-new/hold"]
    assert api.body("POST /vms/vm-new/exec")["argv"] == argv
    assert api.vms == {}


def test_keep_leaves_it_and_says_its_name(squib: Squib, api: FakeAPI) -> None:
    ended = squib("run", "--keep", "--name", "web", "true")
    assert "squib rm web" in ended.err
    assert list(api.vms) == ["vm-new"]
    assert api.held == []


@pytest.mark.parametrize(
    ("request_", "error", "status"),
    [
        ("POST /vms/vm-new/exec", CommandNotFound("x: not found in PATH"), 127),
        ("POST /vms/vm-new/start", BootFailed("VM vm-new ended while it booted", detail="  Kernel panic"), 1),
    ],
)
def test_it_is_removed_after_an_error(
    request_: str, error: BootFailed, status: int, squib: Squib, api: FakeAPI
) -> None:
    api.fails[request_] = error
    ended = squib("run", "x")
    assert ended.status == status
    assert error.message in ended.err and error.detail in ended.err
    assert api.vms == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_is_removed_when_we_are_ended(number: signal.Signals, squib: Squib, api: FakeAPI) -> None:
    async def script(api: FakeAPI) -> AsyncIterator[bytes]:
        os.kill(os.getpid(), number)
        if number == signal.SIGINT:
            await api.signalled.wait()
            os.kill(os.getpid(), number)
        await asyncio.Event().wait()
        yield b""

    api.script = script
    assert squib("run", "sleep", "100").status == 128 + number
    assert api.killed
    assert api.vms == {}


def test_it_is_removed_if_we_are_ended_at_any_step(squib: Squib, api: FakeAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = api.answer
    for step in LIFE:

        async def interrupted(request: object, step: str = step) -> object:
            response = await answer(request)  # type: ignore[arg-type]
            if api.made[-1] == step:
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.sleep(0.01)  # the signal reaches the event loop
            return response

        monkeypatch.setattr(api, "answer", interrupted)
        assert squib("run", "true").status in (0, 128 + signal.SIGTERM)
        assert api.vms == {}, step


def test_a_failed_build_makes_no_vm(squib: Squib, api: FakeAPI) -> None:
    api.fails["POST /kernels"] = DependencyMissing("mmdebstrap is not installed", hint="squib doctor --fix")
    ended = squib("run", "true")
    assert ended.status == 1
    assert ended.err == "squib: mmdebstrap is not installed\nhint: squib doctor --fix\n"
    assert api.made == ["POST /kernels"]


def test_the_users_own_kernel_and_root_need_no_build(squib: Squib, api: FakeAPI, tmp_path: Path) -> None:
    squib("run", "--kernel", str(tmp_path / "vmlinux"), "--rootfs", str(tmp_path / "root.ext4"), "true")
    assert api.made == LIFE[2:]


def test_a_command_is_needed(squib: Squib, api: FakeAPI) -> None:
    ended = squib("run", "--memory", "512")
    assert (ended.status, api.calls) == (2, [])
    assert "hint: squib run -- COMMAND" in ended.err


def test_the_image_is_built_with_progress_on_standard_error(squib: Squib) -> None:
    ended = squib("run", "true")
    assert "squib: image base: squashfs\n" in ended.err
    assert ended.out == b""


def test_json_is_silent_but_for_the_result(squib: Squib) -> None:
    ended = squib("run", "--json", "--keep", "true")
    assert ended.err == ""
    assert (ended.json["vm"], ended.json["exit_code"]) == ("vm-new", 0)


CREATE = (
    "create --name web --project ci --cpus 2 --memory 1g --disk 20gb --runtime python3.13 --boot-args quiet "
    "-e A=1 --boot-timeout 2m"
)


def test_create_passes_its_flags_on_and_prints_the_id(squib: Squib, api: FakeAPI) -> None:
    ended = squib(*CREATE.split())
    assert (ended.status, ended.text) == (0, "vm-new\n")
    assert api.body("POST /vms") == {
        "config": {
            "name": "web",
            "project": "ci",
            "runtime": "python3.13",
            "vcpu_count": 2,
            "mem_size_mib": 1024,
            "disk_size_mib": 20480,
            "kernel_path": None,
            "rootfs_path": None,
            "boot_args": "quiet",
            "env_vars": {"A": "1"},
        },
        "start": True,
        "boot_timeout_s": 120,
    }


def test_create_makes_paths_absolute(
    squib: Squib, api: FakeAPI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    squib("create", "--kernel", "vmlinux", "--rootfs", "../root.ext4")
    config = api.body("POST /vms")["config"]
    assert (config["kernel_path"], config["rootfs_path"]) == (
        f"{tmp_path}/vmlinux",
        f"{tmp_path.parent}/root.ext4",
    )


def test_create_may_leave_it_stopped(squib: Squib, api: FakeAPI) -> None:
    assert squib("create", "--no-start", "--json").json["state"] == "created"
    assert api.body("POST /vms")["start"] is False


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
    verb: list[str], flags: str, said: str, squib: Squib, api: FakeAPI
) -> None:
    ended = squib(*verb, *flags.split(" "), *(["true"] if verb == ["run"] else []))
    assert (ended.status, api.calls) == (2, [])
    assert said in ended.err


def test_a_secret_in_the_environment_is_not_shown_in_an_error(squib: Squib) -> None:
    assert "hunter2" not in squib("create", "-e", "A=hunter2\0", "--cpus", "0").err


def test_a_name_that_is_taken_is_an_error(squib: Squib, api: FakeAPI) -> None:
    api.add("vm-old", name="web")
    api.fails["POST /vms"] = NameTaken("'web' is already the ID or name of vm-old", hint="squib rm web")
    ended = squib("run", "--name", "web", "true")
    assert ended.status == 1
    assert list(api.vms) == ["vm-old"]
