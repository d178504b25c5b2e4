"""``list``, ``inspect``, ``start``, ``stop``, ``remove``: tables, several VMs, names."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from squib.core.engine import Engine
from squib.errors import EngineStartFailed, WrongState
from squib.models import VMState
from squib.paths import Home
from squib.sdk import httpclient
from squib.version import VERSION
from tests.fakes.assets import KERNEL_VERSION
from tests.fakes.recorder import Recorder
from tests.fakes.served import Served
from tests.unit.cli.conftest import Squib

BAD_NAMES = ["..", "a/b", "-rf", "$(x)", "x" * 300, "", "a b", "a\nb", "ä"]


Create = Callable[..., str]


@pytest.fixture
def create(squib: Squib, host_files: list[str], requests: Recorder) -> Create:
    """Creates a VM that does not run, and returns its ID: ``create("a", "--memory", "1g")``."""

    def create(name: str, *flags: str) -> str:
        vm_id = squib("create", *host_files, "--no-start", "--name", name, *flags).text.strip()
        requests.calls.clear()
        return vm_id

    return create


def test_list_is_an_aligned_table_without_colours(squib: Squib, create: Create, engine: Served) -> None:
    rootfs = engine.rig.config.rootfs_path
    broken = create("second", "--memory", "1g")

    async def fail(engine: Engine) -> None:
        reason = "the VMM\nwas killed"
        engine.store.change_state(broken, expected={VMState.CREATED}, to=VMState.ERROR, reason=reason)

    engine.call(fail)
    lines = squib("ls").text.splitlines()
    assert lines[0].split() == ["ID", "NAME", "STATE", "RUNTIME", "VCPUS", "MEMORY", "UPTIME", "REASON"]
    assert lines[1].split()[:4] == [engine.vm_id, "web", "running", rootfs]
    assert lines[2].split()[:7] == [broken, "second", "error", rootfs, "1", "1", "GiB"]
    assert lines[2].endswith("-   the VMM was killed")
    assert "\x1b" not in "".join(lines)
    assert len({line.index(word) for line, word in zip(lines, ["STATE", "running", "error"], strict=True)}) == 1


def test_list_without_vms(squib: Squib) -> None:
    none = ["--project", "empty"]
    assert squib("ls", *none).text.startswith("ID ")
    assert squib("ls", *none, "--json").text == "[]\n"
    assert squib("ls", *none, "-q").text == ""


def test_quiet_prints_ids(squib: Squib, create: Create, engine: Served) -> None:
    second = create("second")
    assert squib("list", "-q").text == f"{engine.vm_id}\n{second}\n"


def test_project_is_asked_of_the_engine(squib: Squib, create: Create, requests: Recorder) -> None:
    vm_id = create("second", "--project", "ci")
    assert squib("ls", "-q", "--project", "ci").text == f"{vm_id}\n"
    assert requests.made == ["GET /vms?project=ci"]


@pytest.mark.parametrize("verb", ["start", "stop", "rm", "remove", "inspect"])
def test_several_vms_and_an_error_among_them(verb: str, squib: Squib, create: Create, requests: Recorder) -> None:
    create("a")
    create("b")
    ended = squib(verb, "a", "nope", "b")
    assert ended.status == 1
    assert ended.err == "squib: no VM has the ID or name 'nope'\nhint: squib ls shows all VMs\n"
    assert len(requests.calls) == 3
    if verb != "inspect":
        assert ended.text == "a\nb\n"


@pytest.mark.parametrize("verb", ["start", "stop", "rm", "inspect"])
def test_json_is_an_array_of_what_succeeded(verb: str, squib: Squib, create: Create) -> None:
    vm_id = create("a")
    ended = squib(verb, "--json", vm_id, "nope")
    assert [vm.get("vm_id") or vm["vm"] for vm in ended.json] == [vm_id]
    assert ended.error["code"] == "not_found"


def test_without_an_engine_it_is_said_once(squib: Squib, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Home] = []

    async def no_engine(home: Home) -> None:
        asked.append(home)
        raise EngineStartFailed("the engine ended before it was ready")

    monkeypatch.setattr(httpclient, "ensure_engine", no_engine)
    monkeypatch.setenv("SQUIB_HOME", str(tmp_path))
    ended = squib("start", "a", "b")
    assert (ended.status, ended.err) == (1, "squib: the engine ended before it was ready\n")
    assert asked == [Home(tmp_path)]


def test_inspect_prints_an_array(squib: Squib, create: Create) -> None:
    vm_id = create("a", "-e", "SECRET=x")
    (vm,) = squib("inspect", "a").json
    assert (vm["vm_id"], vm["env_names"]) == (vm_id, ["SECRET"])


def test_stop_and_start_take_times(squib: Squib, create: Create, requests: Recorder) -> None:
    create("a")
    squib("stop", "-t", "10", "a")
    squib("start", "--boot-timeout", "1m", "web")
    assert [call.body for call in requests.calls] == [{"timeout_s": 10}, {"boot_timeout_s": 60}]


def test_remove_force_is_content_with_nothing(squib: Squib) -> None:
    assert squib("rm", "-f", "nope").status == 0
    assert squib("rm", "-f", "nope", "--json").json == [{"vm": "nope", "removed": False}]


def test_an_error_shows_hint_and_detail(squib: Squib, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(engine: Engine, ref: str, *, boot_timeout_s: float, cold: bool) -> None:
        raise WrongState(f"VM {ref} is deleting", detail="evidence", hint=f"squib inspect {ref}")

    monkeypatch.setattr("squib.api.routes.vms.start_vm", refuse)
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
def test_names_that_are_none_are_refused_everywhere(
    line: list[str], name: str, squib: Squib, requests: Recorder
) -> None:
    ended = squib(*(word.format(name) for word in line))
    assert (ended.status, ended.out) == (2, b"")
    assert requests.calls == []


def test_version_shows_the_engine_and_starts_none(
    squib: Squib, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f"engine {VERSION}, pid {os.getpid()}, fake with none, 1 of 1 VMs running" in squib("version").text
    assert squib("version", "--json").json["engine"]["pid"] == os.getpid()
    home = tmp_path / "home"
    monkeypatch.setenv("SQUIB_HOME", str(home))
    assert "no engine is running" in squib("version").text
    assert squib("version", "--json").json["engine"] is None
    assert not home.exists()


def short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]


def test_images_and_kernels_are_tables(squib: Squib) -> None:
    squib("create", "--no-start", "--name", "user")
    (image,), (kernel,) = squib("image", "ls", "--json").json, squib("kernel", "ls", "--json").json
    lines = squib("image", "ls").text.splitlines()
    assert lines[1].split()[:4] == ["base", short(image["digest"]), "8", "B"]
    assert lines[1].endswith("user")
    line = squib("kernel", "ls").text.splitlines()[1]
    assert line.startswith(f"{KERNEL_VERSION}   {short(kernel['digest'])}   ")


def test_damage_is_noted_with_the_command_that_repairs_it(squib: Squib, engine: Served) -> None:
    image = squib("image", "build", "base", "--json").json
    kernel = squib("kernel", "build", "--json").json
    home = engine.rig.home
    for folder, digest in ((home.images, image["digest"]), (home.kernels, kernel["digest"])):
        (folder / digest.replace(":", "-") / f"{folder.name.removesuffix('s')}.json").write_text("{")
    damage = squib("image", "ls", "--json").json[0]["damage"]
    assert damage
    assert squib("image", "ls").err == f"squib: image base is damaged: {damage} (squib image build base --rebuild)\n"
    damage = squib("kernel", "ls", "--json").json[0]["damage"]
    assert squib("kernel", "ls").err == (
        f"squib: kernel {short(kernel['digest'])} is damaged: {damage} (squib kernel build --rebuild)\n"
    )


def test_a_kernel_is_removed_by_version_or_digest(squib: Squib, requests: Recorder) -> None:
    digest = short(squib("kernel", "build", "--json").json["digest"])
    assert squib("kernel", "rm", KERNEL_VERSION).text == f"{KERNEL_VERSION}\n"
    squib("kernel", "build")
    assert squib("kernel", "rm", digest, "--json").json == {"kernel": digest, "removed": True}
    removed = [what for what in requests.made if what.startswith("DELETE")]
    assert removed == ["DELETE /kernels/6.12.1%2Bdeb13-cloud", f"DELETE /kernels/{digest}"]
    assert squib("kernel", "ls", "--json").json == []
    requests.calls.clear()
    for ref in BAD_NAMES:
        assert squib("kernel", "rm", "--", ref).status == 2
    assert requests.calls == []


def test_builds_print_what_was_built(squib: Squib, requests: Recorder) -> None:
    ended = squib("image", "build", "base", "--rebuild")
    (image,) = squib("image", "ls", "--json").json
    assert ended.text.startswith(f"base {image['digest']}")
    assert "image base: squashfs" in ended.err
    assert squib("kernel", "build", "--json").json["version"] == KERNEL_VERSION
    assert requests.body("POST /images") == {"name": "base", "rebuild": True}
    assert requests.body("POST /kernels") == {"rebuild": False}
