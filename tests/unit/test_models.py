"""The values at squib's boundaries: what they refuse, in which words, and that nothing can be changed afterwards."""

import json
import string
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from squib import models
from squib.models import (
    EngineInfo,
    ExecRequest,
    ProcessInfo,
    RequestModel,
    ResponseModel,
    VMConfig,
    VMInfo,
    VMState,
    check_env,
    check_name,
)
from squib.sdk.config import VMOptions

FIRST = string.ascii_letters + string.digits
LATER = FIRST + "_.-"
HOSTILE = [
    "",
    ".",
    "..",
    "a/b",
    "-rf",
    "_a",
    "$(x)",
    "a b",
    "a" * 64,
    "a" * 300,
    "a\0",
    "a\n",
    "é",
    "ａ",
    "٣",
    "a\udcff",
    "%2e",
]


def refusal(**fields: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        VMConfig(**fields)
    return str(caught.value)


@given(st.sampled_from(FIRST), st.text(LATER, max_size=62))
def test_every_name_of_the_pattern_is_accepted(first: str, rest: str) -> None:
    assert check_name(first + rest) == first + rest


@given(st.text(st.characters(exclude_categories=()), max_size=70))
def test_no_other_name_is_accepted(text: str) -> None:
    fits = 1 <= len(text) <= 63 and text[0] in FIRST and set(text) <= set(LATER)
    try:
        accepted = check_name(text) == text
    except ValueError:
        accepted = False
    assert accepted == fits


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("field", ["vm_id", "name", "project", "runtime"])
def test_hostile_names_are_refused_in_every_field(field: str, name: str) -> None:
    assert "invalid name" in refusal(**{field: name}) or "\\ud" in repr(name)


def test_a_long_name_is_not_repeated_in_full() -> None:
    with pytest.raises(ValueError, match="invalid name") as caught:
        check_name("a" * 100_000)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("field", "low", "high"),
    [("vcpu_count", 1, 64), ("mem_size_mib", 64, 1 << 20), ("disk_size_mib", 16, 16 << 20)],
)
def test_sizes_have_bounds(field: str, low: int, high: int) -> None:
    for size in (low, high):
        assert getattr(VMConfig(**{field: size}), field) == size
    assert f"greater than or equal to {low}" in refusal(**{field: low - 1})
    assert f"less than or equal to {high}" in refusal(**{field: high + 1})
    for nonsense in ("many", 1.5, float("nan"), None if field != "mem_size_mib" else []):
        refusal(**{field: nonsense})


@pytest.mark.parametrize("field", ["kernel_path", "rootfs_path"])
@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("a/b", "not an absolute path"),
        ("", "not an absolute path"),
        ("~/k", "not an absolute"),
        ("/a\0b", "NUL"),
        ("/a\udc80", "UTF-8"),
    ],
)
def test_paths_are_absolute_and_can_be_used(field: str, path: str, why: str) -> None:
    assert why in refusal(**{field: path})


@pytest.mark.parametrize("text", ["a\nb", "a\0b", "é", "a\tb", "\x1b[0m"])
def test_boot_args_are_one_line_of_printable_ascii(text: str) -> None:
    assert "is not one line of printable ASCII" in refusal(boot_args=text)
    assert VMConfig(boot_args="quiet a=b,c").boot_args == "quiet a=b,c"


@pytest.mark.parametrize("name", ["", "1A", "A-B", "A=B", "A B", "É", "A\0", "A\n"])
def test_names_of_environment_variables_are_c_identifiers(name: str) -> None:
    with pytest.raises(ValueError, match="invalid environment variable"):
        check_env({name: "x"})
    assert check_env({"_a9": "x"}) == {"_a9": "x"}


def test_a_refused_environment_does_not_show_its_values() -> None:
    with pytest.raises(ValueError, match="the value of TOKEN contains a NUL byte") as caught:
        check_env({"TOKEN": "hunter2\0"})
    assert "hunter2" not in str(caught.value)


def test_the_environment_is_not_in_a_repr() -> None:
    assert "hunter2" not in repr(VMConfig(env_vars={"TOKEN": "hunter2"}))
    assert "hunter2" not in repr(ExecRequest(argv=["true"], env={"TOKEN": "hunter2"}))


@pytest.mark.parametrize("fields", [{}, {"argv": ["a"], "shell": "a"}, {"argv": None, "shell": None}])
def test_a_command_is_exactly_one_of_argv_and_shell(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="exactly one of argv, shell and login"):
        ExecRequest(**fields)


def test_a_command_has_a_program() -> None:
    with pytest.raises(ValidationError, match="at least 1 item"):
        ExecRequest(argv=[])


@pytest.mark.parametrize(
    "fields",
    [
        {"argv": ["a\0"]},
        {"argv": ["a", "\0"]},
        {"shell": "a\0"},
        {"argv": ["a"], "cwd": "/\0"},
        {"argv": ["a"], "user": "\0"},
    ],
)
def test_no_part_of_a_command_holds_a_nul(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="NUL"):
        ExecRequest(**fields)


@pytest.mark.parametrize("timeout_s", [-1, float("nan"), float("inf"), 1e300, "soon"])
def test_a_timeout_is_a_time(timeout_s: object) -> None:
    with pytest.raises(ValidationError, match="timeout_s"):
        ExecRequest(argv=["true"], timeout_s=timeout_s)  # type: ignore[arg-type]


def test_a_timeout_may_be_short_or_days() -> None:
    assert [ExecRequest(argv=["true"], timeout_s=seconds).timeout_s for seconds in (0.001, 7 * 86400)] == [
        0.001,
        604800,
    ]


def subclasses(base: type[BaseModel]) -> list[type[BaseModel]]:
    return [
        value
        for value in vars(models).values()
        if isinstance(value, type) and issubclass(value, base) and value is not base
    ]


@pytest.mark.parametrize("model", subclasses(RequestModel), ids=lambda model: model.__name__)
def test_requests_are_frozen_and_reject_unknown_fields(model: type[BaseModel]) -> None:
    assert (model.model_config["frozen"], model.model_config["extra"]) == (True, "forbid")


@pytest.mark.parametrize("model", subclasses(ResponseModel), ids=lambda model: model.__name__)
def test_responses_are_frozen_and_ignore_unknown_fields(model: type[BaseModel]) -> None:
    assert (model.model_config["frozen"], model.model_config["extra"]) == (True, "ignore")


ENGINE_INFO = {
    "version": "9.9", "pid": 1, "home": "/h", "driver": "qemu", "accelerator": "kvm",
    "started_at": "2026-01-01T00:00:00Z", "vm_count": 0, "running_count": 0,
}  # fmt: skip
PROCESS_INFO = {
    "id": "p1", "pid": 2, "argv": [], "user": "root", "started_at": "2026-01-01T00:00:00Z", "background": True,
    "pty": {"rows": 1, "cols": 2, "pixels": 3}, "stdin": False, "readers": 0, "stdout": {}, "stderr": {"gap": 1},
    "running": True,
}  # fmt: skip


def test_a_client_reads_the_answers_of_a_newer_engine() -> None:
    assert EngineInfo.model_validate(ENGINE_INFO | {"region": "moon"}).version == "9.9"
    process = ProcessInfo.model_validate(PROCESS_INFO | {"nice": 5})
    assert process.pty is not None
    assert (process.pty.cols, process.stderr.end) == (2, 0)


def test_a_state_of_a_newer_engine_is_unknown() -> None:
    field = TypeAdapter(get_type_hints(VMInfo, include_extras=True)["state"])
    assert field.validate_python("hibernated") is VMState.UNKNOWN
    assert field.validate_python("running") is VMState.RUNNING


def test_a_value_cannot_be_changed() -> None:
    config = VMConfig(vcpu_count=2)
    with pytest.raises(ValidationError, match="frozen"):
        config.vcpu_count = 3
    assert "Extra inputs" in refusal(vcpus=2)


def test_the_sdks_options_are_the_fields_of_a_config() -> None:
    assert get_type_hints(VMOptions).keys() == VMConfig.model_fields.keys()


def test_a_vms_description_has_no_field_for_values_of_the_environment() -> None:
    assert "env_vars" not in VMInfo.model_fields
    assert "env_names" in VMInfo.model_fields


def test_a_config_survives_json() -> None:
    config = VMConfig(vm_id="a", name="b", mem_size_mib=64, env_vars={"A": "é"}, kernel_path="/k")
    assert VMConfig.model_validate(json.loads(json.dumps(config.model_dump(exclude_unset=True)))) == config
