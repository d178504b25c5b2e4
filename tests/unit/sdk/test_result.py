"""How a command's end is read from what a guest, which may be hostile, sends."""

import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from squib.errors import CommandFailed, CommandTimeout
from squib.protocol.frames import Frame, FrameError, FrameKind
from squib.sdk.result import Collector, CommandEnd, ExecResult


def end_of(**values: object) -> CommandEnd:
    return CommandEnd.of(Frame(FrameKind.EXIT, json.dumps(values).encode()).json())


@pytest.mark.parametrize(
    ("values", "exit_code", "signal", "timed_out"),
    [
        ({"exit_code": 3, "signal": None, "timed_out": False}, 3, None, False),
        ({"exit_code": None, "signal": 15, "timed_out": False}, 143, 15, False),
        ({"exit_code": None, "signal": 9, "timed_out": True}, 124, 9, True),
        ({"exit_code": 0, "timed_out": True}, 124, None, True),
    ],
)
def test_an_end_is_told_as_a_shell_does(
    values: dict[str, object], exit_code: int, signal: int | None, timed_out: bool
) -> None:
    assert end_of(**values, duration_ms=1500) == CommandEnd(exit_code, signal, timed_out, 1.5)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"exit_code": None, "signal": None},
        {"exit_code": "0"},
        {"exit_code": True},
        {"exit_code": -1},
        {"exit_code": 256},
        {"exit_code": 10**400},
        {"exit_code": 0.0},
        {"signal": 500},
        {"signal": "9"},
        {"signal": -1},
        {"exit_code": 0, "duration_ms": 10**400},
        {"exit_code": 0, "duration_ms": "long"},
        {"exit_code": 0, "duration_ms": float("nan")},
        {"exit_code": "\x1b[2J\nforged"},
        {"signal": ["\u202e"]},
    ],
)
def test_an_end_that_says_nothing_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(FrameError, match="exit frame") as caught:
        end_of(**values)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("depth", [400, 900, 940, 960, 980, 990, 5000])
def test_a_deep_end_is_refused(depth: int) -> None:
    payload = b'{"exit_code": ' + b"[" * depth + b"]" * depth + b"}"
    with pytest.raises(FrameError):
        CommandEnd.of(Frame(FrameKind.EXIT, payload).json())


@settings(max_examples=40)
@given(
    st.dictionaries(
        st.sampled_from(["exit_code", "signal", "timed_out", "duration_ms"]),
        st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists),
    )
)
def test_whatever_a_guest_sends_is_an_end_or_refused(values: dict[str, object]) -> None:
    with suppress(FrameError):
        assert 0 <= end_of(**values).exit_code <= 255


def test_both_streams_are_kept_in_the_order_in_which_they_were_read() -> None:
    collector = Collector(None, None)
    for kind, text in ((FrameKind.STDOUT, b"a"), (FrameKind.STDERR, b"b"), (FrameKind.STDOUT, b"c")):
        collector.add(Frame(kind, text))
    done = collector.result(CommandEnd(0, None, False, 0.1))
    assert (done.stdout, done.stderr, done.output, done.truncated) == ("ac", "b", "abc", False)


def test_output_is_not_in_the_repr() -> None:
    done = ExecResult(0, None, False, 0.1, b"hunter2", b"hunter2", b"hunter2")
    assert "hunter2" not in repr(done)


def test_a_failed_command_is_shown_with_the_end_of_its_standard_error_and_both_are_bounded() -> None:
    done = ExecResult(1, None, False, 0.1, b"", b"x" * 5000 + b"the last words\n", b"")
    with pytest.raises(CommandFailed, match="exit code 1") as caught:
        done.check("c" * 5000)
    assert caught.value.detail.endswith("the last words") and len(str(caught.value)) < 2500


def test_out_of_memory_is_in_the_result_and_in_the_error() -> None:
    end = end_of(exit_code=None, signal=9, oom_killed=True)
    done = Collector(None, None).result(end)
    assert (done.exit_code, done.oom_killed) == (137, True)
    with pytest.raises(CommandFailed, match=r"exit code 137 \(out of memory\)"):
        done.check("hog")


@pytest.mark.parametrize("timed_out", [True, False])
def test_what_a_guest_printed_cannot_control_the_terminal_that_shows_the_error(timed_out: bool) -> None:
    said = b"\x1b[31mred\x1b[0m\r\n\x1b]0;title\x07\xe2\x80\xae reversed\n"
    done = ExecResult(1, None, timed_out, 0.1, b"", said, said)
    with pytest.raises((CommandFailed, CommandTimeout)) as caught:
        done.check("make")
    assert caught.value.detail.split("\n")[0] == "red"
    assert all(line.isprintable() for line in caught.value.detail.split("\n"))
