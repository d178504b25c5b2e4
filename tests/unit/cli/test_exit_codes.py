"""Every error has the exit status that a shell user expects."""

import pytest

from squib.cli.exit_codes import exit_code
from squib.errors import SquibError
from squib.protocol.errors import BY_CODE

OTHERS = {
    "invalid_argument": 2,
    "unsupported": 2,
    "command_timeout": 124,
    "bad_cwd": 126,
    "no_such_user": 126,
    "not_executable": 126,
    "arguments_too_long": 126,
    "command_not_found": 127,
    "no_shell": 127,
}


@pytest.mark.parametrize("code", BY_CODE)
def test_the_exit_status_of_an_error(code: str) -> None:
    assert exit_code(BY_CODE[code]("what failed")) == OTHERS.get(code, 1)


def test_the_exceptions_are_codes_of_errors() -> None:
    assert OTHERS.keys() <= BY_CODE.keys()


def test_an_error_without_a_code_exits_with_1() -> None:
    assert exit_code(SquibError("what failed")) == 1
