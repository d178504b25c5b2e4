"""The text of an error: the message, and apart from it what to type next and longer evidence."""

import copy
import pickle
import traceback

import pytest

from squib import errors
from squib.cli.render import Output
from squib.errors import SquibError
from squib.protocol.errors import BY_CODE


@pytest.mark.parametrize("cls", BY_CODE.values())
def test_the_text_is_the_message_alone(cls: type[SquibError]) -> None:
    """Before: message, detail and hint, each on a line."""
    error = cls("what failed", hint="squib ls", detail="evidence")
    assert str(error) == f"{error}" == "what failed"


@pytest.mark.parametrize("cls", [errors.NotFound, errors.NoSuchFile, errors.CommandTimeout])
def test_repr_pickle_and_copy_keep_hint_and_detail(cls: type[SquibError]) -> None:
    error = cls("what failed", hint="squib ls", detail="evidence")
    for other in (error, pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert repr(other) == f"{cls.__name__}('what failed', hint='squib ls', detail='evidence')"
    assert repr(cls("what failed")) == f"{cls.__name__}('what failed')"


def test_a_traceback_shows_hint_and_detail_once() -> None:
    error = pickle.loads(pickle.dumps(errors.NotFound("no VM", hint="squib ls", detail="evidence")))
    assert traceback.format_exception_only(error) == ["squib.errors.base.NotFound: no VM\n", "evidence\n", "squib ls\n"]


def test_the_command_line_prints_message_detail_and_hint(capsys: pytest.CaptureFixture[str]) -> None:
    Output().error(errors.NotFound("no VM", hint="squib ls", detail="evidence"))
    assert capsys.readouterr().err == "squib: no VM\nevidence\nhint: squib ls\n"
