"""``list``, ``inspect``, ``start``, ``stop``, ``remove``: tables, several VMs, names."""

from pathlib import Path

import pytest

from squib.cli.args import options
from squib.errors import EngineStartFailed, WrongState
from squib.models import VMState
from squib.paths import Home
from squib.sdk.client import EngineClient
from tests.fakes.api import FakeAPI
from tests.unit.cli.conftest import Squib

BAD_NAMES = ["..", "a/b", "-rf", "$(x)", "x" * 300, "", "a b", "a\nb", "ä"]


def test_list_is_an_aligned_table_without_colours(squib: Squib, api: FakeAPI) -> None:
    api.add("vm-1", name="web", mem_size_mib=1024)
    api.add("vm-22", state=VMState.ERROR, pid=None, started_at=None, reason="the VMM\nwas killed")
    lines = squib("ls").text.splitlines()
    assert lines[0].split() == ["ID", "NAME", "STATE", "RUNTIME", "VCPUS", "MEMORY", "UPTIME", "REASON"]
    assert lines[1].split()[:7] == ["vm-1", "web", "running", "base", "1", "1", "GiB"]
    assert lines[2].endswith("-   the VMM was killed")
    assert "\x1b" not in "".join(lines)
    assert {line.index(word) for line, word in zip(lines, ["STATE", "running", "error"], strict=True)} == {16}


def test_list_without_vms(squib: Squib) -> None:
    assert squib("ls").text.startswith("ID ")
    assert squib("ls", "--json").text == "[]\n"
    assert squib("ls", "-q").text == ""


def test_quiet_prints_ids(squib: Squib, api: FakeAPI) -> None:
    api.add("vm-1", name="web")
    api.add("vm-2")
    assert squib("list", "-q").text == "vm-1\nvm-2\n"


def test_project_is_asked_of_the_engine(squib: Squib, api: FakeAPI) -> None:
    squib("ls", "--project", "ci")
    assert api.made == ["GET /vms?project=ci"]


@pytest.mark.parametrize("verb", ["start", "stop", "rm", "remove", "inspect"])
def test_several_vms_and_an_error_among_them(verb: str, squib: Squib, api: FakeAPI) -> None:
    api.add("vm-1")
    api.add("vm-2")
    ended = squib(verb, "vm-1", "nope", "vm-2")
    assert ended.status == 1
    assert ended.err == "squib: no VM has the ID or name 'nope'\nhint: squib ls shows all VMs\n"
    assert len(api.calls) == 3
    if verb != "inspect":
        assert ended.text == "vm-1\nvm-2\n"


@pytest.mark.parametrize("verb", ["start", "stop", "rm", "inspect"])
def test_json_is_an_array_of_what_succeeded(verb: str, squib: Squib, api: FakeAPI) -> None:
    api.add("vm-1")
    ended = squib(verb, "--json", "vm-1", "nope")
    assert [vm.get("vm_id") or vm["vm"] for vm in ended.json] == ["vm-1"]
    assert ended.error["code"] == "not_found"


def test_without_an_engine_it_is_said_once(squib: Squib, api: FakeAPI) -> None:
    api.fails["POST /vms/a/start"] = EngineStartFailed("the engine ended before it was ready")
    ended = squib("start", "a", "b")
    assert ended.status == 1
    assert api.made == ["POST /vms/a/start"]


def test_inspect_prints_an_array(squib: Squib, api: FakeAPI) -> None:
    api.add("vm-1", name="web", env_names=["SECRET"])
    (vm,) = squib("inspect", "web").json
    assert (vm["vm_id"], vm["env_names"]) == ("vm-1", ["SECRET"])


def test_stop_and_start_take_times(squib: Squib, api: FakeAPI) -> None:
    api.add("vm-1")
    squib("stop", "-t", "10", "vm-1")
    squib("start", "--boot-timeout", "1m", "vm-1")
    assert [call.body for call in api.calls] == [{"timeout_s": 10}, {"boot_timeout_s": 60}]


def test_remove_force_is_content_with_nothing(squib: Squib, api: FakeAPI) -> None:
    assert squib("rm", "-f", "nope").status == 0
    assert squib("rm", "-f", "nope", "--json").json == [{"vm": "nope", "removed": False}]


def test_an_error_shows_hint_and_detail(squib: Squib, api: FakeAPI) -> None:
    api.fails["POST /vms/web/start"] = WrongState("VM web is deleting", detail="evidence", hint="squib inspect web")
    assert squib("start", "web").err == "squib: VM web is deleting\nevidence\nhint: squib inspect web\n"
    assert squib("--json", "start", "web").error == {
        "code": "wrong_state",
        "message": "VM web is deleting",
        "detail": "evidence",
        "hint": "squib inspect web",
    }


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize(
    "line",
    [
        ["start", "--", "{}"], ["stop", "good", "{}"], ["rm", "-f", "--", "{}"], ["inspect", "--", "{}"],
        ["logs", "--", "{}"], ["exec", "--", "{}", "true"], ["create", "--name={}"], ["run", "--name={}", "true"],
        ["ls", "--project={}"], ["create", "--project={}"], ["image", "build", "--", "{}"],
        ["image", "rm", "--", "{}"], ["rm", "{}"],
    ],
)  # fmt: skip
def test_names_that_are_none_are_refused_everywhere(line: list[str], name: str, squib: Squib, api: FakeAPI) -> None:
    ended = squib(*(word.format(name) for word in line))
    assert (ended.status, ended.out) == (2, b"")
    assert api.calls == []


def test_version_shows_the_engine_and_starts_none(
    squib: Squib, api: FakeAPI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "engine 0.1.0, pid 7, qemu with tcg" in squib("version").text
    assert squib("version", "--json").json["engine"]["pid"] == 7
    home = Home(tmp_path / "home")
    monkeypatch.setattr(options, "connect", lambda: EngineClient(home=home))
    assert "no engine is running" in squib("version").text
    assert squib("version", "--json").json["engine"] is None
    assert not home.root.exists()


def test_images_and_kernels_are_tables(squib: Squib, api: FakeAPI) -> None:
    lines = squib("image", "ls").text.splitlines()
    assert lines[1].split()[:4] == ["base", "5c5c5c5c5c5c", "107", "MiB"]
    assert lines[1].endswith("web")
    assert squib("kernel", "ls").text.splitlines()[1].startswith("6.12.1-cloud   5c5c5c5c5c5c   70 MiB")


def test_damage_is_noted_with_the_command_that_repairs_it(squib: Squib, api: FakeAPI) -> None:
    api.damage = "image.json is damaged"
    assert squib("image", "ls").err == (
        "squib: image base is damaged: image.json is damaged (squib image build base --rebuild)\n"
    )
    assert squib("kernel", "ls").err == (
        "squib: kernel 5c5c5c5c5c5c is damaged: image.json is damaged (squib kernel build --rebuild)\n"
    )
    assert squib("image", "ls", "--json").json[0]["damage"] == "image.json is damaged"


def test_a_kernel_is_removed_by_version_or_digest(squib: Squib, api: FakeAPI) -> None:
    assert squib("kernel", "rm", "6.12.1+deb13-cloud").text == "6.12.1+deb13-cloud\n"
    assert squib("kernel", "rm", "5c5c5c5c5c5c", "--json").json == {"kernel": "5c5c5c5c5c5c", "removed": True}
    assert api.made == ["DELETE /kernels/6.12.1%2Bdeb13-cloud", "DELETE /kernels/5c5c5c5c5c5c"]
    for ref in BAD_NAMES:
        assert squib("kernel", "rm", "--", ref).status == 2
    assert len(api.made) == 2


def test_builds_print_what_was_built(squib: Squib, api: FakeAPI) -> None:
    ended = squib("image", "build", "base", "--rebuild")
    assert ended.text.startswith("base sha256:5c5c")
    assert "image base: squashfs" in ended.err
    assert squib("kernel", "build", "--json").json["version"] == "6.12.1-cloud"
    assert [call.body for call in api.calls] == [{"name": "base", "rebuild": True}, {"rebuild": False}]
