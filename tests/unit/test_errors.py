"""The error tree: every error has its own code, and a client raises the same class again."""

import pickle
import re
from pathlib import Path

import pytest

import squib
from squib import errors
from squib.errors import SquibError
from squib.protocol.errors import BY_CODE, from_wire, to_wire

GROUPS = {
    errors.SquibError,
    errors.EngineError,
    errors.HostError,
    errors.BootError,
    errors.AgentError,
    errors.FileError,
    errors.ExecError,
}


def all_errors(cls: type[SquibError] = SquibError) -> set[type[SquibError]]:
    return {cls}.union(*map(all_errors, cls.__subclasses__()))


def test_every_error_but_the_groups_has_a_code_of_its_own() -> None:
    assert {cls for cls in all_errors() if "code" not in vars(cls) or not cls.code} == GROUPS
    assert len(BY_CODE) == len(all_errors() - GROUPS)


@pytest.mark.parametrize("cls", BY_CODE.values())
def test_an_error_crosses_the_wire_as_itself(cls: type[SquibError]) -> None:
    error = cls("what failed", hint="what to do", detail="evidence")
    for copy in (from_wire(to_wire(error)), pickle.loads(pickle.dumps(error))):
        assert type(copy) is cls
        assert (copy.message, copy.hint, copy.detail) == ("what failed", "what to do", "evidence")


def test_an_unknown_code_is_an_internal_error() -> None:
    assert type(from_wire({"code": "of the future", "message": "m"})) is errors.InternalError


@pytest.mark.parametrize("wire", [None, 7, "no", [], {}, {"code": {}, "message": [1], "hint": 2, "detail": {"a": 1}}])
def test_a_value_that_is_not_an_error_is_an_internal_error(wire: object) -> None:
    error = from_wire(wire)
    assert type(error) is errors.InternalError
    assert (error.message, error.hint, error.detail, str(error)) == ("unknown error", "", "", "unknown error")


def test_the_picture_in_the_docstring_is_the_tree() -> None:
    drawn = dict(re.findall(r"[├└]── (\w+) +(\w+)$", errors.__doc__ or "", re.MULTILINE))
    assert drawn == {cls.__name__: code for code, cls in BY_CODE.items()}


def test_all_errors_are_public() -> None:
    assert {cls.__name__ for cls in all_errors()} <= set(squib.__all__)
    assert all(getattr(squib, name) is not None for name in squib.__all__ if name != "__version__")


def test_the_protocols_codes_are_known() -> None:
    text = (Path(__file__).parents[2] / "protocol" / "agent.md").read_text()
    codes = set(re.findall(r"^\| `(\w+)` \| \d{3} \|", text, re.MULTILINE))
    assert codes - {"bad_request", "powering_off", "not_set_up"} <= BY_CODE.keys()
