"""A question before something is removed: asked on a terminal only, and Ctrl-C is an answer."""

import asyncio
import contextlib
import io
import os
import pty
from collections.abc import Iterator

import pytest

from squib.cli.actions.confirm import confirm
from squib.cli.render import Output

pytestmark = pytest.mark.anyio


@contextlib.contextmanager
def terminal() -> Iterator[int]:
    """Make a terminal this process's, and yield the end of it that a person has.

    It is no fixture, because pytest changes the streams once more before a test.
    """
    outer, inner = pty.openpty()
    stream = io.TextIOWrapper(open(inner, "r+b", buffering=0), write_through=True)  # type: ignore[type-var]  # noqa: PTH123, SIM115
    with pytest.MonkeyPatch.context() as patch, stream:
        patch.setattr("sys.stdin", stream)
        patch.setattr("sys.stderr", stream)
        yield outer
    os.close(outer)


def asked(outer: int) -> str:
    return os.read(outer, 1000).decode()


@pytest.mark.parametrize(
    ("answer", "agreed"), [(b"y\n", True), (b" YES \n", True), (b"n\n", False), (b"\n", False), (b"\x04", False)]
)
async def test_a_person_is_asked(answer: bytes, agreed: bool) -> None:
    with terminal() as person:
        asking = asyncio.create_task(confirm(Output(), "Remove it?", yes=False))
        assert await asyncio.to_thread(asked, person) == "Remove it? [y/N] "
        os.write(person, answer)
        assert await asking is agreed


async def test_a_question_can_be_cancelled() -> None:
    with terminal() as person:
        asking = asyncio.create_task(confirm(Output(), "Remove it?", yes=False))
        await asyncio.to_thread(asked, person)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking


async def test_nobody_is_asked_who_has_agreed_or_wants_json() -> None:
    with terminal() as person:
        assert await confirm(Output(), "Remove it?", yes=True)
        assert not await confirm(Output(json=True), "Remove it?", yes=False)
        os.set_blocking(person, False)
        with pytest.raises(BlockingIOError):
            asked(person)


async def test_without_a_terminal_the_answer_is_no(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert not await confirm(Output(), "Remove it?", yes=False)
    assert capsys.readouterr().err == "squib: nothing was removed: add --yes\n"
